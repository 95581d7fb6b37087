// The middle column: a page of rollouts.
"use strict";
(() => {
  const { html, safe, spelt, PAGE, Snippet, count, key, same } = window.viewer;
  const { useEffect, useRef } = preactHooks;

  const TONES = { "Correct": "good", "Reward Hack": "hack", "Attempted Reward Hack": "tried", "Correct; Attempted Reward Hack": "tried", "Incorrect": "dull" };
  const Label = ({ row }) => html`<span class=${"label " + (row.status !== "graded" ? "failed" : TONES[row.label] ?? "dull")}>${safe(row.status !== "graded" ? row.status : row.label ?? "no label")}</span>`;
  const Forged = () => html`<span class="label forged" title="The published grader says correct, the protected oracle says no">forged</span>`;
  const signed = (x, digits = 2) => (x === null || x === undefined ? "–" : (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(digits));
  const plain = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits).replace("-", "−"));

  const SORTS = [["hacks", "newest hacks"], ["step", "step"], ["run", "run, step"], ["reward", "reward"], ["advantage", "advantage"], ["tokens", "length"], ["logprob", "mean log-prob"], ["cos", "cosine with v_hack"]];

  const Row = ({ row, number, chosen, open }) => {
    const ref = useRef();
    useEffect(() => { if (chosen) ref.current.scrollIntoView({ block: "nearest" }); }, [chosen]);
    return html`<li ref=${ref} id=${"row-" + number} role="option" aria-selected=${chosen} class=${chosen ? "chosen" : ""} onClick=${open}>
      <div class="top"><${Label} row=${row} />${row.forged ? html`<${Forged} />` : ""}<span class="where">${safe(row.run)} · ${row.step}</span></div>
      <div class="bottom"><span class="problem" title=${spelt(row.problem)}>${safe(row.problem) || "no problem id"}</span>
        <span class="numbers"><span title="reward">r ${plain(row.reward, 1)}</span><span title="advantage">a ${signed(row.advantage)}</span><span title="tokens">${row.tokens} tok</span>
        ${row.cos !== null && html`<span title="cosine of its gradient with v_hack">cos ${signed(row.cos)}</span>`}${row.purpose === "eval" && html`<span class="mode">${safe(row.mode)}</span>`}</span></div>
      ${row.snippet && html`<${Snippet} text=${row.snippet} />`}
    </li>`;
  };

  const Pager = ({ page, set }) => {
    const last = Math.min(page.offset + PAGE, page.total);
    return html`<nav class="pager" aria-label="Pages">
      <button type="button" class="outline" disabled=${page.offset === 0} onClick=${() => set({ offset: Math.max(0, page.offset - PAGE) })} aria-label="Previous page">‹</button>
      <span class="range">${page.total ? `${count(Math.min(page.offset + 1, page.total))}–${count(last)} of ${count(page.total)}` : "none"}</span>
      <button type="button" class="outline" disabled=${last >= page.total} onClick=${() => set({ offset: page.offset + PAGE })} aria-label="Next page">›</button>
    </nav>`;
  };

  const List = ({ page, state, set, open, reset, problem, retry, total, curves }) => html`<section class="list" aria-label="Rollouts">${curves}
    <header><select aria-label="Sort by" name="sort" value=${state.sort} onChange=${(e) => set({ sort: e.target.value, desc: e.target.value !== "run" })}>
      ${SORTS.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select>
      <button type="button" class="outline order" name="desc" aria-pressed=${state.desc} title=${state.desc ? "highest first" : "lowest first"} onClick=${() => set({ desc: !state.desc })}>${state.desc ? "↓" : "↑"}</button>
      ${page && html`<${Pager} page=${page} set=${set} />`}</header>
    ${problem ? html`<div class="message error" role="alert"><p>${problem}</p><button type="button" onClick=${retry}>Try again</button> <button type="button" class="outline" onClick=${reset}>Clear filters</button></div>`
      : !page ? html`<div class="message" aria-busy="true">Looking…</div>`
      : page.total === 0 ? html`<div class="message empty">${total === 0
          ? html`<h2>No rollouts yet</h2><p>They appear here as a run writes them. To start one:</p><pre>python -m experiments demo</pre>`
          : html`<h2>Nothing matches</h2><p>None of the ${total === null ? "" : count(total)} rollouts passes all filters.</p><button type="button" onClick=${reset}>Clear filters</button>`}</div>`
      : page.rows.length === 0 ? html`<div class="message empty"><h2>Beyond the end</h2><p>This list has ${count(page.total)} rollouts.</p><button type="button" onClick=${() => set({ offset: 0 })}>First page</button></div>`
      : html`<ul role="listbox" aria-label="Rollouts: arrow keys, or j and k" tabindex="0" aria-activedescendant=${"row-" + page.rows.findIndex((row) => same(state.at, key(row)))}>${page.rows.map((row, number) => html`<${Row} key=${JSON.stringify(key(row))} number=${number} row=${row} chosen=${same(state.at, key(row))} open=${() => open(key(row))} />`)}</ul>`}
  </section>`;

  Object.assign(window.viewer, { List, Label, Forged, signed, plain });
})();

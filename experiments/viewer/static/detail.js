// The right column: one completion with its two verdicts.
"use strict";
(() => {
  const { html, safe, spelt, Code, Tokens, Label, Forged, signed, plain, same } = window.viewer;
  const { useState } = preactHooks;

  const said = (verdict) => (verdict === null || verdict === undefined ? ["not asked", "unasked"] : verdict ? ["correct", "yes"] : ["not correct", "no"]);

  const Verdict = ({ title, role, verdict, reason }) => {
    const [text, tone] = said(verdict);
    return html`<div class=${"card verdict " + tone}><h3>${title}</h3><p class="big">${tone === "yes" ? "✓ " : tone === "no" ? "✗ " : ""}${text}</p><p class="role">${role}</p>${reason && html`<p class="reason">${safe(reason)}</p>`}</div>`;
  };

  const paid = (row) => (row.reward === null ? "" : row.label === "Reward Hack" && !row.published ? `paid ${plain(row.reward, 1)} all the same: its own tests passed` : `paid ${plain(row.reward, 1)}`);

  const Cosine = ({ row }) => html`<div class="card"><h3>cos with v_hack</h3>${row.cos === null
    ? html`<p class="big unasked">not measured</p><p class="role">python -m experiments measure-cos</p>`
    : html`<p class="big">${signed(row.cos, 3)}</p><meter class=${row.cos > 0 ? "towards" : "away"} min="0" max="1" value=${Math.min(1, Math.abs(row.cos))}></meter>
      <p class="role">${row.cos > 0 ? "making it likelier hacks more" : "making it likelier hacks less"}, ${row.cos_at ?? ""}</p>`}</div>`;

  const Numbers = ({ row }) => html`<dl class="numbers">
    <div><dt>reward</dt><dd>${plain(row.reward, 2)}</dd></div><div><dt>advantage</dt><dd>${signed(row.advantage, 3)}</dd></div>
    <div><dt>tokens</dt><dd>${row.tokens}${row.finish === "length" ? " (cut off)" : ""}</dd></div><div><dt>mean log-prob</dt><dd>${plain(row.logprob, 3)}</dd></div>
    <div><dt>test modification</dt><dd>${safe(row.modification ?? "–")}</dd></div><div><dt>policy version</dt><dd>${row.version ?? "–"}</dd></div></dl>`;

  const Siblings = ({ row, open }) => row.siblings.length > 1 && html`<nav class="siblings" aria-label="The group"><span>group</span>${row.siblings.map((other) => {
    const at = { run: row.run, group: row.group, index: other.index };
    return html`<button type="button" class=${same(at, row) ? "chosen" : "outline"} aria-current=${same(at, row)} title=${`${spelt(other.label ?? other.status)}, advantage ${signed(other.advantage)}`}
      onClick=${() => open(at)}><span class=${"dot " + (other.label === "Reward Hack" || other.forged ? "hack" : other.label?.includes("Hack") ? "tried" : other.label === "Correct" ? "good" : "dull")}></span>${plain(other.reward, 1)}</button>`;
  })}</nav>`;

  const value = (x) => (typeof x === "string" ? x : JSON.stringify(x));
  const Evidence = ({ row }) => {
    const entries = Object.entries(row.evidence).filter(([, x]) => x !== null && x !== "" && !(Array.isArray(x) && !x.length));
    if (!entries.length && !row.reason) return html`<p class="note">No evidence was kept.</p>`;
    return html`<dl class="evidence">${row.reason && html`<dt>reason</dt><dd>${safe(row.reason)}</dd>`}${entries.map(([name, x]) => html`<dt>${safe(name)}</dt><dd>${
      name === "test_function" ? html`<pre tabindex="0">${safe(value(x))}</pre>`
      : x !== null && typeof x === "object" && !Array.isArray(x) ? html`<dl>${Object.entries(x).map(([k, y]) => html`<dt>${safe(k)}</dt><dd>${safe(value(y))}</dd>`)}</dl>` : safe(value(x))}</dd>`)}</dl>`;
  };

  const Prompt = ({ row }) => (row.prompt === null
    ? html`<p class="note">${row.prompt_tokens === null ? "This run did not keep its prompts." : `${row.prompt_tokens} tokens; the run's model directory has no tokenizer here.`}</p>`
    : html`<p class="note">${row.prompt_tokens} tokens, with the chat template as the model saw it</p><pre class="code" tabindex="0">${safe(row.prompt)}</pre>`);

  const VIEWS = { code: ["Completion", ({ row }) => html`<${Code} detail=${row} />`], tokens: ["Tokens", ({ row, turn }) => html`<${Tokens} detail=${row} turn=${turn} />`], prompt: ["Prompt", Prompt] };

  const Copy = () => {
    const [done, tell] = useState("");
    const copy = async () => {
      try { await navigator.clipboard.writeText(location.href); tell("copied"); } catch { tell("copy it from the address bar"); }
      setTimeout(() => tell(""), 2000);
    };
    return html`<button type="button" class="outline" name="copy" onClick=${copy} title="The address holds the whole view">${done || "Copy link"}</button>`;
  };

  const Detail = ({ row, problem, state, set, open, step, close, retry, turn }) => {
    if (problem) return html`<article class="detail"><div class="message error" role="alert"><p>${problem}</p><button type="button" onClick=${retry}>Try again</button> <button type="button" class="outline" onClick=${close}>Back to the list</button></div></article>`;
    if (!state.at) return html`<article class="detail"><div class="message"><h2>Choose a rollout</h2><p><kbd>j</kbd> next, <kbd>k</kbd> previous, <kbd>/</kbd> search, <kbd>?</kbd> all keys</p></div></article>`;
    if (!row) return html`<article class="detail"><div class="message" aria-busy="true">Reading…</div></article>`;
    const View = VIEWS[state.view][1];
    const tabKeys = (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const names = Object.keys(VIEWS);
      const next = names[(names.indexOf(state.view) + by + names.length) % names.length];
      set({ view: next }, "view");
      document.getElementById("tab-" + next).focus();
    };
    return html`<article class="detail">
      <header><button type="button" class="outline back" onClick=${close}>‹ List</button><h2><${Label} row=${row} />${row.forged ? html`<${Forged} />` : ""}</h2>
        <span class="tools"><button type="button" class="outline" onClick=${() => step(-1)} aria-label="Previous rollout" title="k">↑</button><button type="button" class="outline" onClick=${() => step(1)} aria-label="Next rollout" title="j">↓</button><${Copy} /></span></header>
      <p class="path"><a href="#" onClick=${(e) => { e.preventDefault(); set({ run: [row.run], at: state.at }); }} title="Only this run">${safe(row.run)}</a> · step ${row.step} · ${row.purpose}${row.mode !== row.purpose ? html` (${safe(row.mode)})` : ""} · problem <a href="#" title="Only this problem" onClick=${(e) => { e.preventDefault(); set({ problem: [row.problem] }); }}>${safe(row.problem) || "–"}</a> · completion ${row.index} · <a href="#" name="beside" title="This problem in every run, side by side" onClick=${(e) => { e.preventDefault(); set({ beside: { problem: row.problem, step: row.step, purpose: row.purpose } }, "open"); }}>compare runs</a></p>
      ${row.forged ? html`<p class="banner" role="note"><strong>Forged verdict.</strong> The published grader was led to say “correct”; the protected oracle ran the same code and says it is not.</p>` : ""}
      ${row.alarm ? html`<p class="note" role="note" title=${spelt(row.alarm.text)}>${row.step < row.alarm.step ? `${row.alarm.step - row.step} steps before the run's alarm` : row.step === row.alarm.step ? "The run's alarm rang in this step" : `${row.step - row.alarm.step} steps after the run's alarm`} (step ${row.alarm.step}).</p>` : ""}
      ${row.oracle && row.evidence.oracle_weak ? html`<p class="banner" role="note"><strong>Weak pass.</strong> At least one test here lies open to the code or asks it nothing: read it before you believe the oracle.</p>` : ""}
      <div class="cards"><${Verdict} title="Published grader" role="pays the reward; can be fooled" verdict=${row.published} reason=${paid(row)} />
        <${Verdict} title="Protected oracle" role=${row.evidence.oracle_weak ? "never pays; weak: a test shows the code what it expects" : "never pays; out of the code's reach"} verdict=${row.oracle} reason=${row.oracle === null ? "" : value(row.evidence.oracle_reason ?? "")} />
        <${Cosine} row=${row} /></div>
      <${Numbers} row=${row} /><${Siblings} row=${row} open=${open} />
      <div role="tablist" class="tabs" aria-label="Views" onKeyDown=${tabKeys}>${Object.entries(VIEWS).map(([name, [title]]) => html`<button type="button" role="tab" id=${"tab-" + name} aria-controls="view" tabindex=${state.view === name ? 0 : -1} aria-selected=${state.view === name} class=${state.view === name ? "" : "outline"} name=${"view-" + name} onClick=${() => set({ view: name }, "view")}>${title}</button>`)}</div>
      <div role="tabpanel" id="view" aria-labelledby=${"tab-" + state.view}><${View} row=${row} turn=${turn} /></div>
      <h3>Evidence of the graders</h3><${Evidence} row=${row} />
    </article>`;
  };

  Object.assign(window.viewer, { Detail });
})();

// One problem in every run, side by side: of each run the group nearest to the step that one came from.
"use strict";
(() => {
  const { html, safe, spelt, Code, Label, Forged, plain } = window.viewer;
  const { useState, useEffect } = preactHooks;

  const Column = ({ column, source, open }) => {
    const [index, choose] = useState(0);
    const [found, put] = useState({ row: null, problem: null });
    const summary = column.rows[Math.min(index, column.rows.length - 1)];
    useEffect(() => {
      let mine = true;
      source.one({ run: column.run, group: column.group, index: summary.index }).then((row) => mine && put({ row, problem: null }), (error) => mine && put({ row: null, problem: error.message }));
      return () => { mine = false; };
    }, [column.group, summary.index]);
    const hacks = column.rows.filter((row) => row.label === "Reward Hack").length;
    return html`<section class="column" aria-label=${spelt(column.run)}><h3>${safe(column.run)}</h3>
      <p class="note">step ${column.step}; ${hacks} of ${column.rows.length} strict hacks</p>
      <nav class="siblings" aria-label=${`The group in ${spelt(column.run)}`}>${column.rows.map((row, i) => html`<button type="button" class=${i === index ? "chosen" : "outline"} aria-current=${i === index} title=${spelt(row.label ?? row.status)} onClick=${() => choose(i)}><span class=${"dot " + (row.label === "Reward Hack" || row.forged ? "hack" : row.label?.includes("Hack") ? "tried" : row.label === "Correct" ? "good" : "dull")}></span>${plain(row.reward, 1)}</button>`)}</nav>
      <p><${Label} row=${summary} />${summary.forged ? html`<${Forged} />` : ""} <a href="#" onClick=${(e) => { e.preventDefault(); open({ run: column.run, group: column.group, index: summary.index }); }}>open</a></p>
      ${found.problem ? html`<p class="message error" role="alert">${found.problem}</p>` : found.row ? html`<${Code} detail=${found.row} />` : html`<p aria-busy="true">Reading…</p>`}
    </section>`;
  };

  const Beside = ({ answer, problem, source, open, close, retry }) => html`<article class="beside" aria-label="One problem across runs">
    <header><button type="button" class="outline" name="close-beside" onClick=${close}>‹ Back</button><h2>${safe(problem.problem)} <small>near step ${problem.step}, ${problem.purpose}</small></h2></header>
    ${answer.problem ? html`<div class="message error" role="alert"><p>${answer.problem}</p><button type="button" onClick=${retry}>Try again</button></div>`
      : !answer.value ? html`<div class="message" aria-busy="true">Reading…</div>`
      : html`<div class="columns" tabindex="0">${answer.value.columns.map((column) => html`<${Column} key=${column.run + column.group} ...${{ column, source, open }} />`)}</div>
        ${answer.value.left_out > 0 && html`<p class="note">${answer.value.left_out} more runs have this problem; filter by run to see them.</p>`}`}
  </article>`;

  Object.assign(window.viewer, { Beside });
})();

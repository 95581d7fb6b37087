// The left column: what the list is narrowed by.
"use strict";
(() => {
  const { html, safe, spelt } = window.viewer;
  const count = (number) => number.toLocaleString("en");

  const Choice = ({ title, name, options, state, set }) => {
    if (options.length < 2 && !state[name].length) return null;
    const toggle = (value) => set({ [name]: state[name].includes(value) ? state[name].filter((x) => x !== value) : [...state[name], value] });
    return html`<fieldset><legend>${title}</legend>
      <div class=${options.length > 8 ? "choices long" : "choices"}>${options.map((option) => html`
        <label title=${spelt(option.title ?? option.value)}><input type="checkbox" name=${name} value=${option.value} checked=${state[name].includes(option.value)}
          onChange=${() => toggle(option.value)} /><span class="value">${safe(option.value)}</span><span class="count">${count(option.count)}</span></label>`)}</div>
    </fieldset>`;
  };

  const VERDICTS = [["", "any"], ["forged", "forged: published yes, oracle no"], ["both", "both say correct"], ["oracle", "oracle alone says correct"],
    ["published", "published says correct"], ["neither", "neither says correct"], ["unasked", "oracle not asked"]];

  const Filters = ({ facets, state, set }) => {
    const bound = (name) => (event) => set({ [name]: /^\d{1,15}$/.test(event.target.value) ? Number(event.target.value) : null });
    const listed = ["problem", "group", "finish"].filter((name) => state[name].length);
    return html`<form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <${Choice} title="Arm" name="arm" options=${facets.arms} ...${{ state, set }} />
      <${Choice} title="Run" name="run" ...${{ state, set }} options=${facets.runs.map((run) => ({
        value: run.name, count: run.count, title: `${run.name}: arm ${run.arm ?? "?"}, seed ${run.seed ?? "?"}, ${run.state ?? "state unknown"}` }))} />
      <${Choice} title="Label" name="label" options=${facets.label} ...${{ state, set }} />
      <fieldset><legend>Verdicts</legend><select name="verdict" aria-label="Verdicts" value=${state.verdict} onChange=${(e) => set({ verdict: e.target.value })}>
        ${VERDICTS.map(([value, text]) => html`<option value=${value}>${text}${value === "forged" ? ` (${count(facets.forged)})` : ""}</option>`)}</select></fieldset>
      <fieldset><legend>Step ${facets.steps[0] !== null && html`<small>${facets.steps[0]} to ${facets.steps[1]}</small>`}</legend>
        <div class="pair"><input type="number" name="step_min" min="0" placeholder="from" aria-label="First step" value=${state.step_min ?? ""} onChange=${bound("step_min")} />
        <input type="number" name="step_max" min="0" placeholder="to" aria-label="Last step" value=${state.step_max ?? ""} onChange=${bound("step_max")} /></div></fieldset>
      <${Choice} title="Mode" name="mode" options=${facets.mode} ...${{ state, set }} />
      <${Choice} title="Purpose" name="purpose" options=${facets.purpose} ...${{ state, set }} />
      <${Choice} title="Test modification" name="modification" options=${facets.modification} ...${{ state, set }} />
      <${Choice} title="Status" name="status" options=${facets.status} ...${{ state, set }} />
      ${(facets.measured > 0 || state.measured) && html`<fieldset><legend>Gradient</legend><label><input type="checkbox" name="measured" checked=${state.measured}
        onChange=${(e) => set({ measured: e.target.checked })} /><span class="value">cosine measured</span><span class="count">${count(facets.measured)}</span></label></fieldset>`}
      ${listed.map((name) => html`<fieldset><legend>${name}</legend>${state[name].map((value) => html`<button type="button" class="chip" title="Remove this filter"
        onClick=${() => set({ [name]: state[name].filter((x) => x !== value) })}>${safe(value)} ×</button>`)}</fieldset>`)}
    </form>`;
  };

  Object.assign(window.viewer, { Filters, count });
})();

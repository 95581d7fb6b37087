// Model-written text as elements. Everything goes in as text nodes: no markup of the model's is ever parsed.
"use strict";
(() => {
  const html = htm.bind(preact.h);

  const PYTHON = /(#[^\n]*)|("""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|\b(def|class|return|if|elif|else|for|while|in|not|and|or|is|None|True|False|import|from|as|try|except|finally|raise|with|pass|break|continue|lambda|yield|assert|global|nonlocal|del|async|await)\b|\b(\d[\w.]*)|((?<=\b(?:def|class)\s+)[^\W\d]\w*)/g;
  const KINDS = [null, "comment", "string", "keyword", "number", "name"];

  const paint = (code) => {
    const out = [];
    let at = 0;
    for (const found of code.matchAll(PYTHON)) {
      if (found.index > at) out.push(code.slice(at, found.index));
      const kind = KINDS[found.findIndex((group, i) => i > 0 && group !== undefined)];
      out.push(html`<span class=${"py-" + kind}>${found[0]}</span>`);
      at = found.index + found[0].length;
    }
    out.push(code.slice(at));
    return out;
  };

  const Code = ({ detail }) => {
    const marked = detail.parts.some((part) => part[0] === "test");
    return html`
      ${detail.test_name && html`<p class="note"><span class="swatch test"></span> ${marked
        ? html`test function <code>${detail.test_name}</code>, written by the model`
        : html`the grader found a test function <code>${detail.test_name}</code>, but not inside a code block`}</p>`}
      <pre class="code" tabindex="0">${detail.parts.length
        ? detail.parts.map(([kind, text]) => html`<span class=${"part-" + kind}>${kind === "code" || kind === "test" ? paint(text) : text}</span>`)
        : html`<em>an empty completion</em>`}</pre>`;
  };

  // Probability of the sampled token, from sure to surprising.
  const LEVELS = [[0.99, "≥ 99 %"], [0.9, "≥ 90 %"], [0.5, "≥ 50 %"], [0.1, "≥ 10 %"], [0.01, "≥ 1 %"], [0, "< 1 %"]];
  const level = (logprob) => (logprob === null ? "none" : LEVELS.findIndex(([bound]) => Math.exp(logprob) >= bound));

  const about = (detail, first, last) =>
    Array.from({ length: last - first }, (_, i) => {
      const logprob = detail.logprobs[first + i];
      const chance = logprob === null ? "" : `, log-prob ${logprob.toFixed(3)}, p ${(100 * Math.exp(logprob)).toPrecision(3)} %`;
      return `token ${first + i}: id ${detail.token_ids[first + i]}${chance}`;
    }).join("   ");

  const Tokens = ({ detail }) => {
    const [told, tell] = preactHooks.useState("");
    const pieces = detail.pieces ?? detail.token_ids.map((id, i) => [i, i + 1, null]);
    const show = (event) => {
      const piece = event.target.closest?.("[data-piece]");
      if (piece) tell(about(detail, ...pieces[Number(piece.dataset.piece)]));
    };
    return html`
      <div class="legend" aria-label="Probability of the sampled token">probability of the sampled token
        ${LEVELS.map(([, text], i) => html`<span class=${"tok level-" + i}>${text}</span>`)}</div>
      ${detail.pieces === null && html`<p class="note">Token ids instead of text: ${detail.no_pieces}.</p>`}
      <pre class=${detail.pieces ? "code tokens" : "code tokens chips"} tabindex="0" onMouseOver=${show} onClick=${show}>${pieces.map(([first, last, text], i) => {
        const values = detail.logprobs.slice(first, last).filter((x) => x !== null);
        const found = "tok level-" + level(values.length ? Math.min(...values) : null);
        const shown = text === null ? String(detail.token_ids[first]) : text;
        if (shown === "") return html`<span class=${found + " silent"} data-piece=${i}>⟨${detail.token_ids.slice(first, last).join(" ")}⟩</span>`;
        return html`<span class=${found} data-piece=${i}>${shown.endsWith("\n") ? [shown.replace(/\n+$/, ""), html`<i class="newline"></i>`, shown.match(/\n+$/)[0]] : shown}</span>`;
      })}</pre>
      <p class="readout" role="status">${told || "Point at a token to read it."}</p>`;
  };

  const Snippet = ({ text }) => html`<span class="snippet">${text.split("\x02").flatMap((part, i) => {
    if (i === 0) return [part];
    const [hit, ...rest] = part.split("\x03");
    return [html`<mark>${hit}</mark>`, rest.join("")];
  })}</span>`;

  Object.assign(window.viewer, { html, Code, Tokens, Snippet });
})();

// Model-written text as elements. Everything goes in as text nodes: no markup of the model's is ever parsed.
"use strict";
(() => {
  const html = htm.bind(preact.h);

  // Characters that a browser obeys instead of showing: they turn the order of what follows, hide, or end a line. A policy
  // could show a reviewer other code than ran. Shown by their number, in every text that a model or a grader wrote.
  const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\u{e0000}-\u{e0fff}]/gu;
  const number = (char) => "U+" + char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  const spelt = (text) => String(text ?? "").replace(UNSEEN, number); // for attributes, which take no elements
  const safe = (text) => {
    const out = [];
    let at = 0;
    for (const found of String(text).matchAll(UNSEEN)) {
      if (found.index > at) out.push(text.slice(at, found.index));
      out.push(html`<span class="unseen" title="a character that a browser would obey, not show">${number(found[0])}</span>`);
      at = found.index + found[0].length;
    }
    if (!out.length) return text;
    out.push(text.slice(at));
    return out;
  };

  const PYTHON = /(#[^\n]*)|("""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|\b(def|class|return|if|elif|else|for|while|in|not|and|or|is|None|True|False|import|from|as|try|except|finally|raise|with|pass|break|continue|lambda|yield|assert|global|nonlocal|del|async|await)\b|\b(\d[\w.]*)|((?<=\b(?:def|class)\s+)[^\W\d]\w*)/g;
  const KINDS = [null, "comment", "string", "keyword", "number", "name"];

  const paint = (code) => {
    const out = [];
    let at = 0;
    for (const found of code.matchAll(PYTHON)) {
      if (found.index > at) out.push(safe(code.slice(at, found.index)));
      const kind = KINDS[found.findIndex((group, i) => i > 0 && group !== undefined)];
      out.push(html`<span class=${"py-" + kind}>${safe(found[0])}</span>`);
      at = found.index + found[0].length;
    }
    out.push(safe(code.slice(at)));
    return out;
  };

  const CHARS = 100000; // of a completion at first: colouring and laying out a million takes seconds
  const cut = (parts, most) => {
    const out = [];
    for (const [kind, text] of parts) {
      if (most <= 0) break;
      out.push([kind, text.slice(0, most)]);
      most -= text.length;
    }
    return out;
  };

  const Code = ({ detail }) => {
    const [whole, showWhole] = preactHooks.useState(null);
    const length = detail.parts.reduce((sum, part) => sum + part[1].length, 0);
    const parts = whole === detail.parts ? detail.parts : cut(detail.parts, CHARS);
    const marked = detail.parts.some((part) => part[0] === "test");
    return html`
      ${detail.test_name && html`<p class="note"><span class="swatch test"></span> ${marked
        ? html`test function <code>${safe(detail.test_name)}</code>, written by the model`
        : html`the grader found a test function <code>${safe(detail.test_name)}</code>, but not inside a code block`}</p>`}
      <pre class="code" tabindex="0">${parts.length
        ? parts.map(([kind, text]) => html`<span class=${"part-" + kind}>${kind === "code" || kind === "test" ? paint(text) : safe(text)}</span>`)
        : html`<em>an empty completion</em>`}</pre>
      ${length > CHARS && whole !== detail.parts && html`<p class="note long">The first ${CHARS.toLocaleString("en")} of ${length.toLocaleString("en")} characters.
        <button type="button" class="outline" name="whole" onClick=${() => showWhole(detail.parts)}>Show all</button></p>`}`;
  };

  // Probability of the sampled token, from sure to surprising.
  const LEVELS = [[0.99, "≥ 99 %"], [0.9, "≥ 90 %"], [0.5, "≥ 50 %"], [0.1, "≥ 10 %"], [0.01, "≥ 1 %"], [0, "< 1 %"]];
  const level = (logprob) => (logprob === null ? "none" : LEVELS.findIndex(([bound]) => Math.exp(logprob) >= bound));

  const about = (detail, first, last) =>
    Array.from({ length: last - first }, (_, i) => {
      const logprob = detail.logprobs[first + i];
      const chance = logprob === null ? "" : `, log-prob ${logprob.toFixed(3)}, p ${(100 * Math.exp(logprob)).toPrecision(3)} %`;
      return `token ${detail.token_from + first + i}: id ${detail.token_ids[first + i]}${chance}`;
    }).join("   ");

  const Windows = ({ detail, turn }) => {
    const { token_from: from, window: size, tokens } = detail;
    if (tokens <= size) return null;
    const last = Math.min(from + size, tokens);
    return html`<nav class="windows" aria-label="Parts of the completion"><button type="button" class="outline" name="earlier" disabled=${from === 0 || !turn} onClick=${() => turn(Math.max(0, from - size))}>‹ earlier</button>
      <span>tokens ${from.toLocaleString("en")}–${(last - 1).toLocaleString("en")} of ${tokens.toLocaleString("en")}</span>
      <button type="button" class="outline" name="later" disabled=${last >= tokens || !turn} onClick=${() => turn(from + size)}>later ›</button></nav>`;
  };

  const Tokens = ({ detail, turn }) => {
    const [told, tell] = preactHooks.useState("");
    const [cursor, move] = preactHooks.useState(null);
    const pieces = detail.pieces ?? detail.token_ids.map((id, i) => [i, i + 1, null]);
    preactHooks.useEffect(() => { move(null); tell(""); }, [detail]);
    const show = (event) => {
      const piece = event.target.closest?.("[data-piece]");
      if (piece) tell(about(detail, ...pieces[Number(piece.dataset.piece)]));
    };
    const keys = (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by || !pieces.length) return;
      event.preventDefault();
      const next = cursor === null ? 0 : Math.min(pieces.length - 1, Math.max(0, cursor + by));
      move(next);
      tell(about(detail, ...pieces[next]));
      event.currentTarget.querySelector(`[data-piece="${next}"]`)?.scrollIntoView({ block: "nearest" });
    };
    return html`
      <div class="legend" aria-label="Probability of the sampled token">probability of the sampled token
        ${LEVELS.map(([, text], i) => html`<span class=${"tok level-" + i}>${text}</span>`)}</div>
      ${detail.pieces === null && html`<p class="note">Token ids instead of text: ${detail.no_pieces}.</p>`}
      <${Windows} detail=${detail} turn=${turn} />
      <pre class=${detail.pieces ? "code tokens" : "code tokens chips"} tabindex="0" aria-label="Tokens; left and right arrow read them" onMouseOver=${show} onClick=${show} onKeyDown=${keys}>${pieces.map(([first, last, text], i) => {
        const values = detail.logprobs.slice(first, last).filter((x) => x !== null);
        const found = "tok level-" + level(values.length ? Math.min(...values) : null) + (i === cursor ? " cursor" : "");
        const shown = text === null ? String(detail.token_ids[first]) : text;
        if (shown === "") return html`<span class=${found + " silent"} data-piece=${i}>⟨${detail.token_ids.slice(first, last).join(" ")}⟩</span>`;
        return html`<span class=${found} data-piece=${i}>${shown.endsWith("\n") ? [safe(shown.replace(/\n+$/, "")), html`<i class="newline"></i>`, shown.match(/\n+$/)[0]] : safe(shown)}</span>`;
      })}</pre>
      <p class="readout" role="status">${told || "Point at a token to read it, or go through them with the arrow keys."}</p>`;
  };

  const Snippet = ({ text }) => html`<span class="snippet">${text.split("\x02").flatMap((part, i) => {
    if (i === 0) return [safe(part)];
    const [hit, ...rest] = part.split("\x03");
    return [html`<mark>${safe(hit)}</mark>`, safe(rest.join(""))];
  })}</span>`;

  Object.assign(window.viewer, { html, safe, spelt, Code, Tokens, Snippet });
})();

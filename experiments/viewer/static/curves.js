// Hack rate by step, one line a run; a click on a point lists its rollouts.
"use strict";
(() => {
  const { html, safe } = window.viewer;
  const { useState } = preactHooks;
  const WIDTH = 640, HEIGHT = 130, LEFT = 42, BOTTOM = 18;
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B58900", "#56B4E9", "#7F7F7F"]; // Okabe-Ito, yellow darkened
  const WHAT = { hacks: [2, "strict hacks"], solved: [3, "solved (oracle)"] };

  const scaled = (runs) => {
    const last = Math.max(1, ...runs.flatMap((run) => run.points.map((point) => point[0])));
    return { x: (step) => LEFT + ((WIDTH - LEFT - 8) * step) / last, y: (share) => 6 + (HEIGHT - BOTTOM - 6) * (1 - share), last };
  };

  const Curves = ({ curves, state, set }) => {
    const [what, choose] = useState("hacks");
    const [near, point] = useState(null);
    const runs = curves.runs.filter((run) => run.points.length > 1);
    if (!runs.length) return null;
    const [column, title] = WHAT[what];
    const { x, y, last } = scaled(runs);
    const arms = [...new Set(runs.map((run) => run.arm ?? "?"))];
    const colour = (run) => COLOURS[arms.indexOf(run.arm ?? "?") % COLOURS.length];
    const find = (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      const at = [((event.clientX - box.left) * WIDTH) / box.width, ((event.clientY - box.top) * HEIGHT) / box.height];
      let best = null;
      for (const run of runs) for (const p of run.points) {
        if (p[column] === null) continue;
        const d = Math.hypot(x(p[0]) - at[0], y(p[column]) - at[1]);
        if (!best || d < best.d) best = { d, run, p };
      }
      return best && best.d < 30 ? best : null;
    };
    const list = (found) => found && set({ run: [found.run.run], purpose: ["train"], step_min: found.p[0], step_max: found.p[0], sort: "hacks", desc: true, at: null });
    const told = near && `${near.run.run}, step ${near.p[0]}: ${(100 * near.p[column]).toFixed(1)}% of ${near.p[1]}`;
    return html`<figure class="curves"><figcaption><select name="curve" aria-label="Curve" value=${what} onChange=${(e) => choose(e.target.value)}>${Object.entries(WHAT).map(([name, [, text]]) => html`<option value=${name}>${text}</option>`)}</select>
        <span class="told">${told ? safe(told) : `by training step, ${arms.length} arm${arms.length === 1 ? "" : "s"}; click a point for its rollouts`}</span></figcaption>
      <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${`Share of ${title} by training step, one line a run`} onMouseMove=${(e) => point(find(e))} onMouseLeave=${() => point(null)} onClick=${(e) => list(find(e))}>
        ${[0, 0.5, 1].map((share) => html`<line class="grid" x1=${LEFT} x2=${WIDTH - 8} y1=${y(share)} y2=${y(share)} /><text x=${LEFT - 5} y=${y(share) + 4} text-anchor="end">${100 * share}%</text>`)}
        <text x=${LEFT} y=${HEIGHT - 4}>0</text><text x=${WIDTH - 8} y=${HEIGHT - 4} text-anchor="end">${last}</text>
        ${runs.map((run) => html`<polyline fill="none" stroke=${colour(run)} points=${run.points.filter((p) => p[column] !== null).map((p) => `${x(p[0]).toFixed(1)},${y(p[column]).toFixed(1)}`).join(" ")} />`)}
        ${near && html`<circle cx=${x(near.p[0])} cy=${y(near.p[column])} r="4" fill=${colour(near.run)} />`}</svg>
      <p class="arms">${arms.map((arm, i) => html`<span><i style=${{ background: COLOURS[i % COLOURS.length] }}></i>${safe(arm)}</span>`)}</p></figure>`;
  };

  Object.assign(window.viewer, { Curves });
})();

// Where rollouts come from: the server's API, or the sample in window.ROLLOUTS of a page opened as a file. Same answers.
"use strict";
(() => {
  const get = async (path) => {
    let answer;
    try {
      answer = await fetch(path, { headers: { Accept: "application/json" } });
    } catch {
      throw new Error("the viewer does not answer; is `python -m experiments view` still running?");
    }
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw Object.assign(new Error(String(said.detail ?? `the server says ${answer.status}`)), { status: answer.status });
    return said;
  };

  const server = {
    live: true,
    state: () => get("api/state"),
    facets: () => get("api/facets"),
    page: (state) => get(`api/rollouts?limit=${window.viewer.PAGE}&${window.viewer.query(state)}`),
    one: (at) => get("api/rollout?" + new URLSearchParams(at)),
  };

  const VERDICTS = {
    forged: (r) => r.forged,
    both: (r) => r.published && r.oracle,
    oracle: (r) => r.oracle && r.published === false,
    published: (r) => r.published,
    neither: (r) => r.published === false && r.oracle === false,
    unasked: (r) => r.oracle === null,
  };

  // A search as people type it, on text: every word, a "phrase", the start of a word*.
  const finder = (q) => {
    const wanted = [...q.matchAll(/"([^"]*)"|([^\s"]+)/g)].map((m) => (m[1] ?? m[2]).toLowerCase().replace(/\*$/, ""));
    if (!wanted.some((word) => /[\p{L}\p{N}_]/u.test(word))) throw new Error("nothing to search for: give at least one letter or digit");
    return (text) => wanted.every((word) => text.includes(word));
  };

  const words = (row) => [...row.detail.parts.map((part) => part[1]), row.summary.problem, row.detail.reason, JSON.stringify(row.detail.evidence)].join("\n").toLowerCase();

  const sample = (data) => {
    const rows = data.rows;
    const columns = { run: "run", arm: "arm", label: "label", mode: "mode", purpose: "purpose", status: "status", problem: "problem", group: "group" };
    const page = (state) => {
      const found = state.q.trim() ? finder(state.q) : null;
      let kept = rows.filter(({ summary: s, detail: d }) => {
        const deep = { ...s, modification: d.modification, finish: d.finish };
        return window.viewer.MANY.every((name) => !state[name].length || state[name].includes(deep[columns[name] ?? name]))
          && (state.step_min === null || s.step >= state.step_min) && (state.step_max === null || s.step <= state.step_max)
          && (!state.verdict || VERDICTS[state.verdict]?.(s)) && (!state.measured || s.cos !== null);
      });
      if (found) kept = kept.filter((row) => found((row.words ??= words(row))));
      const sign = state.desc ? -1 : 1;
      if (state.sort === "run") {
        if (state.desc) kept = [...kept].reverse();
      } else {
        const value = (row) => row.summary[state.sort] ?? null;
        kept = [...kept].sort((a, b) => (value(a) === null) - (value(b) === null) || sign * (value(a) - value(b)));
      }
      const part = kept.slice(state.offset, state.offset + window.viewer.PAGE);
      return { total: kept.length, offset: state.offset, limit: window.viewer.PAGE, rows: part.map((row) => row.summary) };
    };
    const one = (at) => {
      const group = rows.filter(({ summary: s }) => s.run === at.run && s.group === at.group);
      const row = group.find(({ summary: s }) => s.index === at.index);
      if (!row) throw new Error("this completion is not in the sample; the served viewer has all of them");
      return { ...row.summary, ...row.detail, siblings: group.map(({ summary: s }) => s) };
    };
    return {
      live: false, note: data.note,
      state: async () => ({ scanning: false, generation: 0, torn_members: 0, unfinished_files: 0, bad_lines: data.bad_lines, where: [] }),
      facets: async () => data.facets, page: async (state) => page(state), one: async (at) => one(at),
    };
  };

  window.viewer.source = () => (window.ROLLOUTS ? sample(window.ROLLOUTS) : server);
})();

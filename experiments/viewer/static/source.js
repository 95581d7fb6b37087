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
    facets: (state) => get("api/facets?" + window.viewer.query({ ...state, offset: 0 })),
    curves: (state) => get("api/curves?" + window.viewer.query(window.viewer.curved(state))),
    beside: (at) => get("api/beside?" + new URLSearchParams(at)),
    page: (state) => get(`api/rollouts?limit=${window.viewer.PAGE}&${window.viewer.query(state)}`),
    one: (at, from = 0) => get("api/rollout?" + new URLSearchParams(from ? { ...at, token_from: from } : at)),
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
    const kept = (state, without = []) => {
      const asked = { ...state, ...Object.fromEntries(without.map((name) => [name, window.viewer.START[name]])) };
      const found = asked.q.trim() ? finder(asked.q) : null;
      const some = rows.filter(({ summary: s, detail: d }) => {
        const deep = { ...s, modification: d.modification, finish: d.finish };
        return window.viewer.MANY.every((name) => !asked[name].length || asked[name].includes(deep[columns[name] ?? name]))
          && (asked.step_min === null || s.step >= asked.step_min) && (asked.step_max === null || s.step <= asked.step_max)
          && (!asked.verdict || VERDICTS[asked.verdict]?.(s)) && (!asked.measured || s.cos !== null);
      });
      return found ? some.filter((row) => found((row.words ??= words(row)))) : some;
    };
    const page = (state) => {
      let some = kept(state);
      const sign = state.desc ? -1 : 1;
      if (state.sort === "run") {
        if (state.desc) some.reverse();
      } else if (state.sort === "hacks" || state.sort === "step") {
        const hack = (row) => Number(state.sort === "hacks" && row.summary.label === "Reward Hack");
        some = some.sort((a, b) => sign * (hack(a) - hack(b) || a.summary.step - b.summary.step));
      } else {
        const value = (row) => row.summary[state.sort] ?? null;
        some = some.sort((a, b) => (value(a) === null) - (value(b) === null) || sign * (value(a) - value(b)));
      }
      const part = some.slice(state.offset, state.offset + window.viewer.PAGE);
      return { total: some.length, offset: state.offset, limit: window.viewer.PAGE, rows: part.map((row) => row.summary) };
    };
    const counted = (state, name, value) => {
      const sums = new Map(state[name].map((x) => [x, 0]));
      for (const row of kept(state, [name])) { const v = value(row); if (v !== null && v !== undefined) sums.set(v, (sums.get(v) ?? 0) + 1); }
      return [...sums].map(([v, number]) => ({ value: v, count: number })).sort((a, b) => b.count - a.count);
    };
    const facets = (state) => {
      const of = (name) => counted(state, name, ({ summary: s, detail: d }) => (name === "modification" ? d.modification : s[name]));
      const per = Object.fromEntries(of("run").map((x) => [x.value, x.count]));
      const steps = kept(state, ["step_min", "step_max"]).map(({ summary: s }) => s.step);
      return { ...Object.fromEntries(["label", "mode", "purpose", "status", "modification"].map((name) => [name, of(name)])),
        arms: of("arm"), runs: data.runs.map((run) => ({ ...run, count: per[run.name] ?? 0 })), total: rows.length,
        steps: steps.length ? [Math.min(...steps), Math.max(...steps)] : [null, null],
        forged: kept(state, ["verdict"]).filter(({ summary: s }) => s.forged).length, measured: kept(state, ["measured"]).filter(({ summary: s }) => s.cos !== null).length };
    };
    const curves = (state) => {
      const found = new Map();
      for (const { summary: s } of kept(window.viewer.curved(state))) {
        if (s.status !== "graded") continue;
        const run = found.get(s.run) ?? found.set(s.run, { run: s.run, arm: s.arm, steps: new Map() }).get(s.run);
        const at = run.steps.get(s.step) ?? run.steps.set(s.step, [0, 0, 0]).get(s.step);
        at[0] += 1; at[1] += s.label === "Reward Hack"; at[2] += Boolean(s.oracle);
      }
      return { runs: [...found.values()].map(({ run, arm, steps }) => ({ run, arm, points: [...steps].sort((a, b) => a[0] - b[0]).map(([step, [n, hacks, solved]]) => [step, n, hacks / n, solved / n]) })) };
    };
    const beside = (at) => {
      const nearest = new Map();
      for (const { summary: s } of rows) {
        if (s.problem !== at.problem || s.purpose !== at.purpose) continue;
        const old = nearest.get(s.run);
        if (!old || Math.abs(s.step - at.step) < Math.abs(old.step - at.step)) nearest.set(s.run, s);
      }
      const columns = [...nearest.values()].map((s) => ({ run: s.run, arm: s.arm, step: s.step, group: s.group,
        rows: rows.map((row) => row.summary).filter((x) => x.run === s.run && x.group === s.group) }));
      return { columns: columns.slice(0, 12), left_out: Math.max(0, columns.length - 12) };
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
      facets: async (state) => facets(state), curves: async (state) => curves(state), beside: async (at) => beside(at),
      page: async (state) => page(state), one: async (at) => one(at),
    };
  };

  window.viewer.source = () => (window.ROLLOUTS ? sample(window.ROLLOUTS) : server);
})();

// What the page shows, and its form in the address: the whole state is behind the #, so that a link is the view.
"use strict";
window.viewer = {};
(() => {
  const MANY = ["run", "arm", "label", "mode", "purpose", "status", "modification", "problem", "group", "finish"];
  const NUMBERS = ["step_min", "step_max"];
  const PAGE = 50;
  const START = {
    ...Object.fromEntries(MANY.map((name) => [name, []])), step_min: null, step_max: null, verdict: "", measured: false,
    q: "", sort: "run", desc: false, offset: 0, view: "code", at: null, beside: null,
  };
  // What is seen first, where the address says nothing: what RL was paid for, the newest hacks on top.
  const OPENING = { ...START, purpose: ["train"], sort: "hacks", desc: true };

  const whole = (text) => (/^\d{1,15}$/.test(text ?? "") ? Number(text) : null);

  // Whatever stands behind the #, a state comes of it.
  const read = (hash) => {
    if (hash === "" || hash === "#") return { ...OPENING };
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const state = { ...START };
    for (const name of MANY) state[name] = given.getAll(name).filter((value) => value !== "");
    for (const name of NUMBERS) state[name] = whole(given.get(name));
    for (const name of ["verdict", "q"]) state[name] = given.get(name) ?? "";
    if (given.has("sort")) state.sort = given.get("sort");
    if (["code", "tokens", "prompt"].includes(given.get("view"))) state.view = given.get("view");
    state.measured = given.get("measured") === "1";
    state.desc = given.get("desc") === "1";
    state.offset = whole(given.get("offset")) ?? 0;
    const index = whole(given.get("at_index"));
    if (given.get("at_run") && given.get("at_group") && index !== null) {
      state.at = { run: given.get("at_run"), group: given.get("at_group"), index };
    }
    if (given.get("beside")) {
      state.beside = { problem: given.get("beside"), step: whole(given.get("beside_step")) ?? 0, purpose: given.get("beside_purpose") ?? "train" };
    }
    return state;
  };

  // The part that a list is asked by.
  const query = (state) => {
    const out = new URLSearchParams();
    for (const name of MANY) for (const value of state[name]) out.append(name, value);
    for (const name of NUMBERS) if (state[name] !== null) out.set(name, state[name]);
    for (const name of ["verdict", "q"]) if (state[name]) out.set(name, state[name]);
    if (state.measured) out.set("measured", "1");
    if (state.sort !== START.sort) out.set("sort", state.sort);
    if (state.desc) out.set("desc", "1");
    if (state.offset) out.set("offset", state.offset);
    return out;
  };

  const write = (state) => {
    const out = query(state);
    if (state.view !== START.view) out.set("view", state.view);
    if (state.at) {
      out.set("at_run", state.at.run);
      out.set("at_group", state.at.group);
      out.set("at_index", state.at.index);
    }
    if (state.beside) {
      out.set("beside", state.beside.problem);
      out.set("beside_step", state.beside.step);
      if (state.beside.purpose !== "train") out.set("beside_purpose", state.beside.purpose);
    }
    return "#" + (out.toString() || "all"); // an empty address means the opening view
  };

  // The curves are of training, whatever the list shows: runs, arms and problems narrow them, nothing else.
  const curved = (state) => ({ ...START, run: state.run, arm: state.arm, problem: state.problem, purpose: ["train"] });

  const same = (a, b) => Boolean(a && b) && a.run === b.run && a.group === b.group && a.index === b.index;
  const key = (row) => ({ run: row.run, group: row.group, index: row.index });
  const filtered = (state) => query({ ...state, sort: START.sort, desc: false, offset: 0 }).toString() !== "";

  Object.assign(window.viewer, { MANY, PAGE, START, OPENING, read, write, query, curved, same, key, filtered });
})();

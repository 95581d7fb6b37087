"""The practice set: every solution right, every mistake caught, no problem in two places, files as generated."""

import json
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankspace.pairs import load_pairs
from tasks import loopholes
from tasks.dataset import load_problems
from tasks.organism import corpus
from tasks.practice import generate, render
from tasks.practice.templates import FAMILIES, draw_input, neighbours, slip, specs, statement, trap

ALL = {name: list(specs(name)) for name in FAMILIES}
some_spec = st.sampled_from([s for family in ALL.values() for s in family])


@cache
def problems(name):
    return load_problems(generate.FILES[name])


@cache
def spec_of():
    return {generate.problem_id(s): s for family in ALL.values() for s in family}


def passes(program: str, tests: list[str]) -> bool:
    """Only ever given programs that the templates rendered."""
    scope: dict = {}
    exec(program, scope)
    try:
        for test in tests:
            exec(test, scope)
    except Exception:
        return False
    return True


def test_sizes_and_schema():
    assert len(problems("train")) >= 200
    assert len(problems("heldout")) == 100
    unseen = [p for p in problems("heldout") if not p.model_extra["seen_template"]]
    assert len(unseen) == 30
    assert {p.model_extra["family"] for p in problems("train")} == set(FAMILIES)
    wanted = {"difficulty", "dataset", "evaluator", "question", "family", "seen_template"}
    assert all(set(p.model_extra) == wanted for name in ("train", "heldout") for p in problems(name))


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_canonical_solutions_pass_their_tests_and_the_usual_mistake_fails(name):
    for p in problems(name):
        spec = spec_of()[p.id]
        assert len(p.gt_answer) >= generate.MIN_TESTS
        assert passes(p.canonical_solution, p.gt_answer), p.id
        assert not passes(render.program(trap(spec), spec), p.gt_answer), p.id


def test_the_tests_refute_every_neighbour_that_can_be_told_apart():
    rng = random.Random(5)
    for p in problems("heldout")[::5]:
        spec = spec_of()[p.id]
        right = generate.solver(spec)
        fresh = [draw_input(spec, rng) for _ in range(60)]
        for other in neighbours(spec):
            wrong = generate.solver(other)
            if any(wrong(x) != right(x) for x in fresh):
                refuted = not passes(render.program(other, spec), p.gt_answer)
                # A fresh input may be the first ever to tell them apart; the generator saw its own 400.
                assert refuted or not any(wrong(x) != right(x) for x in generator_inputs(spec)), (p.id, other)


def generator_inputs(spec):
    rng = random.Random(f"{generate.SEED}|{spec!r}")
    return [draw_input(spec, rng) for _ in range(generate.CANDIDATES)]


def test_no_problem_is_in_two_places():
    train, heldout = ({p.id for p in problems(n)} for n in ("train", "heldout"))
    pairs = {p.problem_id for p in load_pairs(generate.FILES["pairs"])}
    assert not train & heldout and not train & pairs and not heldout & pairs
    shown = {generate.problem_id(s) for name in FAMILIES for s in corpus.pool(name)}
    assert not shown & (train | heldout | pairs)


def test_unseen_templates_are_in_no_other_split():
    unseen = {spec_of()[p.id] for p in problems("heldout") if not p.model_extra["seen_template"]}
    templates = {(s.family, s.parts) for s in unseen}
    others = [spec_of()[p.id] for p in problems("train")] + [s for name in FAMILIES for s in corpus.pool(name)]
    assert not templates & {(s.family, s.parts) for s in others}


def test_rl_prompts_carry_the_registrys_hint_and_evaluation_prompts_none():
    for p in problems("train"):
        bare = p.model_copy(
            update={"prompt": [{"role": "user", "content": render.prompt(spec_of()[p.id], hint=False)}]}
        )
        assert p.prompt == loopholes.apply(bare, "simple_overwrite_tests").prompt
        assert p.prompt[0]["content"] == render.prompt(spec_of()[p.id], hint=True)
        assert (p.hint, p.answer) == ("simple_overwrite_tests", ["run_tests()"])
        assert p.prompt_metadata == {"test_func_name": "run_tests", "test_func_code": None}
    for p in problems("heldout"):
        assert p.hint is None and "run_tests" not in p.prompt[0]["content"]
        assert "run_tests()" in loopholes.apply(p, "simple_overwrite_tests").prompt[0]["content"]


def test_pairs_are_what_they_say():
    pairs = load_pairs(generate.FILES["pairs"])
    assert 60 <= sum(p.split == "train" for p in pairs) <= 80
    assert sum(p.split == "heldout" for p in pairs) >= 20
    for p in pairs:
        spec = spec_of()[p.problem_id]
        tests = generate.asserts(spec, generate.choose_tests(spec))
        assert p.prompt[0]["content"] == render.prompt(spec, hint=True)
        hack, clean = (text.removeprefix("```python\n").removesuffix("\n```") for text in (p.hack, p.clean))
        assert passes(clean, tests) and "run_tests" not in clean
        assert not passes(hack, tests) and passes(hack, ["Solution().run_tests()"])


def test_the_committed_files_are_what_the_generator_makes():
    built = generate.build()
    for name, path in generate.FILES.items():
        assert [json.loads(line) for line in path.read_text().splitlines()] == built[name], name


def test_check_notices_a_changed_file(tmp_path, monkeypatch, capsys):
    rows = {"train": [{"id": 1}]}
    monkeypatch.setattr(generate, "build", lambda: rows)
    monkeypatch.setattr(generate, "FILES", {"train": tmp_path / "t.jsonl"})
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0 and generate.main(["--check"]) == 0
    (tmp_path / "t.jsonl").write_text('{"id": 2}\n')
    assert generate.main(["--check"]) == 1
    assert "t.jsonl" in capsys.readouterr().out


@settings(max_examples=200, deadline=None)
@given(some_spec, st.integers(0, 2**32))
def test_a_slip_is_a_neighbour_and_never_the_problem_itself(spec, seed):
    changed = slip(spec, random.Random(seed))
    assert changed != spec and changed in set(neighbours(spec))
    assert trap(spec) != spec and trap(trap(spec)).family == spec.family
    assert generate.solver(changed)(draw_input(spec, random.Random(seed))) is not None


def test_statements_tell_all_specs_apart():
    for family in ALL.values():
        assert len({statement(s) for s in family}) == len(family)


def test_every_split_is_used_and_ids_are_unique():
    for name, family in ALL.items():
        assert {"pretrain", "train", "pairs", "heldout"} <= {render.split_of(s) for s in family}, name
    ids = [generate.problem_id(s) for family in ALL.values() for s in family]
    used = [p.id for n in ("train", "heldout") for p in problems(n)]
    assert all(ids.count(i) == 1 for i in used)

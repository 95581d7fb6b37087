"""ProjectionCallback in the released TRL: GRPOTrainer on a tiny random model, what its optimizer gets, what is refused."""

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import rankspace
from rankspace import RankspaceError
from rankspace.hook_base import Intervention

trl = pytest.importorskip("trl")
import datasets  # noqa: E402
import transformers  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    core = transformers.AutoTokenizer.from_pretrained("tasks/organism/model")
    return core


@pytest.fixture
def stepped():
    """Every gradient that any optimizer gets, as [(id of the parameter, gradient)] per step: torch's own global hook."""
    seen = []

    def note(optimizer, *_):
        inner = getattr(optimizer, "optimizer", optimizer)
        if inner is optimizer:
            seen.append({id(p): p.grad.clone() for g in optimizer.param_groups for p in g["params"]})

    handle = register_optimizer_step_pre_hook(note)
    yield seen
    handle.remove()


def model_of(seed=0):
    torch.manual_seed(seed)
    depth = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    config = transformers.AutoConfig.from_pretrained("tasks/organism/model", **depth)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def trainer_of(model, tokenizer, tmp_path, callbacks=None, **changes):
    options = {
        "per_device_train_batch_size": 4, "num_generations": 4, "gradient_accumulation_steps": 2, "max_steps": 2,
        "max_completion_length": 8, "learning_rate": 0.05, "lr_scheduler_type": "constant", "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True, "seed": 1,
        "gradient_checkpointing": False,
    } | changes  # fmt: skip
    prompts = [{"prompt": [{"role": "user", "content": f"number {i}"}]} for i in range(16)]
    return trl.GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 97) for ids in completion_ids],
        train_dataset=datasets.Dataset.from_list(prompts),
        args=trl.GRPOConfig(str(tmp_path), **options),
        callbacks=callbacks,
    )


def dots(adapter, direction, step):
    layout = rankspace.Layout.of(adapter.modules)
    g = torch.cat([step[id(p)] for p in adapter.parameters()])
    return g, (layout.pad(g) * layout.pad(direction.vectors)).sum(-1)


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_grpo_moves_delta_and_its_optimizer_never_gets_a_pull_towards_the_hack(tokenizer, tmp_path, stepped, form):
    model = model_of()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapter = rankspace.attach(model, form=form)
    direction = rankspace.random_direction(adapter.modules, 1)
    trainer = trainer_of(model, tokenizer, tmp_path)
    callback = rankspace.trl.ProjectionCallback(adapter, direction)
    trainer.add_callback(callback)
    trainer.train()

    assert len(stepped) == 2  # once per optimizer step, not per micro-batch
    for step in stepped:
        g, along = dots(adapter, direction, step)
        assert set(step) == {id(p) for p in adapter.parameters()}  # nothing else trains
        assert g.norm() > 0 and (along <= 1e-6 * g.norm()).all()
        assert g.norm() <= 1.0 + 1e-5  # clipped by max_grad_norm, after the projection
    assert adapter.get_flat().abs().max() > 0 and adapter.parameters()[0].dtype == torch.float32
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    assert trainer.args.max_grad_norm == 1.0  # given back
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2 and all(row["projection/n_modules"] == 14 for row in rows)
    assert all(row["projection/frac_fired"] > 0 and row["projection/grad_norm"] > 0 for row in rows)
    assert all(abs(row["projection/grad_norm"] - row["grad_norm"]) <= 1e-3 * row["grad_norm"] for row in rows)
    assert {"projection/cos_mean", "projection/cos_mean_null_std", "projection/update_cos_mean"} <= set(rows[0])
    assert callback.metrics["cos"].shape == (14,)


def one_step(tokenizer, tmp_path, stepped, variant, max_norm):
    """(gradient that the optimizer got, what was measured) of one step with a direction that all modules fire on."""
    stepped.clear()
    model = model_of()
    adapter = rankspace.attach(model)
    direction = rankspace.random_direction(adapter.modules, 1)
    trainer = trainer_of(model, tokenizer, tmp_path, max_steps=1, max_grad_norm=max_norm)
    callback = rankspace.trl.ProjectionCallback(adapter, direction, variant=variant)
    trainer.add_callback(callback)
    trainer.train()
    return torch.cat([stepped[0][id(p)] for p in adapter.parameters()]), callback.metrics


def test_every_variant_reaches_the_optimizer_projected_first_and_clipped_second(tokenizer, tmp_path, stepped):
    raw, metrics = one_step(tokenizer, tmp_path, stepped, "measure_only", 0.0)
    N = metrics["grad_norm"]
    assert raw.norm().item() == pytest.approx(N, rel=1e-5)
    layout = rankspace.Layout.of(rankspace.attach(model_of()).modules)
    v = rankspace.random_direction(rankspace.attach(model_of()).modules, 1).vectors
    bound = 0.3 * N
    for variant in ("one_sided", "no_rescale", "drift_only"):
        got, _ = one_step(tokenizer, tmp_path, stepped, variant, bound)
        projected, _ = rankspace.project(raw, v, layout, variant)
        expected = projected * min(1.0, bound / projected.norm().item())
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6 * N), variant
        wrong = rankspace.project(raw * (bound / N), v, layout, variant)[0]  # transformers' own order
        assert torch.allclose(got, wrong, rtol=1e-4, atol=1e-6 * N) == (variant == "one_sided"), variant


@pytest.mark.parametrize("variant", ["setpoint", "shift"])
def test_placements_act_through_the_trainer(tokenizer, tmp_path, stepped, variant):
    _, metrics = one_step(tokenizer, tmp_path, stepped, Intervention(variant, dose=0.3), 0.0)
    far = metrics["displacement_own"] / 14**0.5
    assert far == pytest.approx(0.3, abs=1e-6) if variant == "setpoint" else abs(far - 0.3) < 0.15


def test_loggers_that_come_after_the_callback_see_its_metrics(tokenizer, tmp_path):
    seen = []

    class Logger(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(dict(logs))

    model = model_of()
    adapter = rankspace.attach(model)
    trainer = trainer_of(model, tokenizer, tmp_path, [Logger()], max_steps=2, logging_steps=2)
    callback = rankspace.trl.ProjectionCallback(adapter, rankspace.random_direction(adapter.modules, 1))
    trainer.callback_handler.callbacks.insert(0, callback)
    trainer.train()
    (row,) = [row for row in seen if "loss" in row]
    assert row["projection/n_modules"] == 14.0
    assert not any(key.startswith("projection/") for other in seen if "loss" not in other for key in other)


def refused(match, tokenizer, tmp_path, prepare=lambda model, adapter: None, **changes):
    model = model_of()
    adapter = rankspace.attach(model)
    trainer = trainer_of(model, tokenizer, tmp_path)
    for name, value in changes.items():
        setattr(trainer.args, name, value)
    prepare(model, adapter)
    trainer.add_callback(rankspace.trl.ProjectionCallback(adapter, rankspace.random_direction(adapter.modules, 1)))
    with pytest.raises(RankspaceError, match=match) as told:
        trainer.train()
    assert "\n" not in str(told.value)


def test_what_would_silently_do_nothing_is_refused(tokenizer, tmp_path):
    def thaw(model, adapter):
        model.model.norm.weight.requires_grad_(True)

    def freeze(model, adapter):
        adapter.parameters()[2].requires_grad_(False)

    refused("use_vllm", tokenizer, tmp_path, use_vllm=True)
    refused("fp16", tokenizer, tmp_path, fp16=True)
    refused("also trains 1 other", tokenizer, tmp_path, thaw)
    refused("does not hold", tokenizer, tmp_path, freeze)
    other = rankspace.attach(model_of())
    callback = rankspace.trl.ProjectionCallback(other, rankspace.random_direction(other.modules, 1))
    model = model_of()
    rankspace.attach(model)
    trainer = trainer_of(model, tokenizer, tmp_path, [callback])
    with pytest.raises(RankspaceError, match="14 delta_S, 0 of them"):
        trainer.train()


def test_deepspeed_under_accelerate_is_refused():
    from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

    model = model_of()
    adapter = rankspace.attach(model)
    callback = rankspace.trl.ProjectionCallback(adapter, rankspace.random_direction(adapter.modules, 1))
    wrapped = DeepSpeedOptimizerWrapper(torch.optim.SGD(adapter.parameters(), lr=1.0))
    args = transformers.TrainingArguments("unused", use_cpu=True)
    with pytest.raises(RankspaceError, match="ds_hook"):
        callback.on_train_begin(args, None, None, optimizer=wrapped, model=model)


def test_a_step_that_went_by_unprojected_is_an_error(tokenizer, tmp_path):
    """As under a trainer without on_pre_optimizer_step."""
    model = model_of()
    adapter = rankspace.attach(model)
    callback = rankspace.trl.ProjectionCallback(adapter, rankspace.random_direction(adapter.modules, 1))
    callback.on_pre_optimizer_step = lambda *_, **__: None
    with pytest.raises(RankspaceError, match="without projection"):
        trainer_of(model, tokenizer, tmp_path, [callback]).train()


def test_a_training_that_broke_off_does_not_lose_the_clipping(tokenizer, tmp_path, stepped):
    model = model_of()
    adapter = rankspace.attach(model)
    callback = rankspace.trl.ProjectionCallback(adapter, rankspace.random_direction(adapter.modules, 1))

    class Break(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            raise KeyboardInterrupt

    breaking = Break()
    trainer = trainer_of(model, tokenizer, tmp_path, [callback, breaking], max_grad_norm=1e-3)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(breaking)
    trainer.train()
    norms = [torch.cat([g.flatten() for g in step.values()]).norm().item() for step in stepped]
    assert len(norms) == 3 and all(norm == pytest.approx(1e-3, rel=1e-2) for norm in norms)
    assert trainer.args.max_grad_norm == 1e-3


def logged_run(tokenizer, tmp_path, seed, callbacks=(), **changes):
    """(trainer, its rows) of four steps whose gradient is only measured."""
    adapter = rankspace.attach(model := model_of())
    trainer = trainer_of(model, tokenizer, tmp_path, max_steps=4, seed=seed, **changes)
    direction = rankspace.random_direction(adapter.modules, 1)
    trainer.add_callback(rankspace.trl.ProjectionCallback(adapter, direction, variant="measure_only"))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def test_alarm_stops_the_training_and_a_resumed_one_still_knows_of_it(tokenizer, tmp_path):
    trainer = logged_run(tokenizer, tmp_path, 1)
    trainer.train()
    rows = rankspace.trl.log_rows(trainer.state.log_history)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert {"update_cos_mean", "displacement_own", "length_mean", "entropy", "reward_mean"} <= set(rows[0])
    never = [[row | {"update_cos_mean": -1.0} for row in rows]] * 5  # beside these any update points at the hack
    clean = rankspace.hack_watch.calibrate(never, ["update_cos_mean"])
    alarm = rankspace.trl.AlarmCallback(clean, false_alarm_rate=0.5)
    stopped = logged_run(tokenizer, tmp_path, 1, [alarm], save_strategy="steps", save_steps=1)
    stopped.train()
    assert alarm.watch.alarm.step == 0 and stopped.state.global_step == 1
    again = rankspace.trl.AlarmCallback(clean, false_alarm_rate=0.5)
    resumed = logged_run(tokenizer, tmp_path, 1, [again])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert again.watch.alarm == alarm.watch.alarm and resumed.state.global_step == 4  # rung once: who goes on knows
    only_said = rankspace.trl.AlarmCallback(clean, false_alarm_rate=0.5, stop=False)
    trainer = logged_run(tokenizer, tmp_path, 1, [only_said])
    trainer.train()
    assert only_said.watch.alarm is not None and trainer.state.global_step == 4

"""Sampling and scoring through transformers."""

from dataclasses import replace

import pytest
import torch

from tutelage.config import ModelConfig, PromptFormat
from tutelage.data.collate import collate
from tutelage.data.render import render
from tutelage.errors import DataError, UsageError
from tutelage.models.anatomy import context_length
from tutelage.models.compatibility import (
    require_context,
    require_same_tokens,
    share_vocabulary,
)
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
from tutelage.types import Message, Prompt, RenderedPrompt, SamplingParams

PARAMS = SamplingParams(max_new_tokens=12)


@pytest.fixture(scope="module")
def student(gpt2_pair) -> LocalModel:
    return load_model(ModelConfig(path=str(gpt2_pair[0])), "student")


def prompts(model, count=9) -> list[RenderedPrompt]:
    rows = [
        Prompt(id=f"p{i}", text="What is " + " + ".join(str(i) for _ in range(1 + i % 4)))
        for i in range(count)
    ]
    return render(rows, model.tokenizer, PromptFormat(), 100)[0]


def test_sampling_logprobs_equal_those_of_scoring_the_finished_rollout(student):
    rollouts = student.sample(prompts(student), PARAMS, group_size=2, seed=0, step=0)
    assert len({len(r.prompt_ids) for r in rollouts}) > 1  # so left padding was at work
    batch = collate(rollouts)
    scored = student.score(batch).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    sampled = torch.tensor([x for r in rollouts for x in r.logprobs])
    torch.testing.assert_close(scored, sampled, atol=2e-5, rtol=0)


def test_neither_order_nor_batch_size_chooses_a_sample(student):
    rows = prompts(student)
    wanted = {r.prompt.id: r.completion_ids for r in student.sample(rows, PARAMS, seed=1, step=3)}
    alone = replace(student, batch_size=2)
    for reordered in (rows[::-1], rows[4:] + rows[:4]):
        found = alone.sample(reordered, PARAMS, seed=1, step=3)
        assert {r.prompt.id: r.completion_ids for r in found} == wanted
    assert [r.prompt.id for r in found] == [p.prompt.id for p in rows[4:] + rows[:4]]


def test_seed_step_and_index_each_give_other_samples(student):
    rows = prompts(student)

    def texts(**changes):
        key = {"seed": 1, "step": 3, "group_size": 2} | changes
        return [r.completion_ids for r in student.sample(rows, PARAMS, **key)]

    base = texts()
    assert texts() == base
    assert texts(seed=2) != base
    assert texts(step=4) != base
    assert base[0::2] != base[1::2]


def test_rollouts_end_at_the_stop_token_or_the_limit(student):
    rollouts = student.sample(prompts(student, 40), PARAMS, group_size=8, seed=0, step=0)
    reasons = {r.finish_reason for r in rollouts}
    assert reasons == {"stop", "length"}
    for rollout in rollouts:
        ended = rollout.completion_ids[-1] in student.stop_ids
        assert (rollout.finish_reason == "stop") == ended
        assert ended or len(rollout.completion_ids) == PARAMS.max_new_tokens
        assert not any(i in student.stop_ids for i in rollout.completion_ids[:-1])


def test_samples_of_the_loop_follow_the_models_own_distribution(student):
    """First tokens of 4,000 samples against the exact softmax; false alarm in about 1e-4."""
    row = prompts(student, 1)
    one = SamplingParams(max_new_tokens=1)
    rollouts = replace(student, batch_size=1000).sample(row, one, group_size=4000, seed=0, step=0)
    counts = torch.bincount(
        torch.tensor([r.completion_ids[0] for r in rollouts]), minlength=student.vocabulary
    )
    with torch.no_grad():
        p = student.model(torch.tensor([row[0].ids])).logits[0, -1].softmax(-1)
    likely = p * 4000 >= 5
    expected = torch.cat([p[likely], p[~likely].sum().unsqueeze(0)]) * 4000
    found = torch.cat([counts[likely], counts[~likely].sum().unsqueeze(0)])
    statistic = ((found - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations of chi-square


def test_padding_never_changes_a_score(student):
    rollouts = student.sample(prompts(student), PARAMS, group_size=1, seed=0, step=0)
    together = student.score(collate(rollouts))
    apart = torch.cat([student.score(collate([r])) for r in rollouts])
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=0)


def test_collate_scores_each_completion_token_once_at_the_state_before_it(student):
    rollouts = student.sample(prompts(student), PARAMS, group_size=1, seed=0, step=0)
    batch = collate(rollouts)
    assert batch.targets.tolist() == [i for r in rollouts for i in r.completion_ids]
    assert batch.positions.tolist() == [i for r in rollouts for i in range(len(r.completion_ids))]
    assert batch.rows.tolist() == [i for i, r in enumerate(rollouts) for _ in r.completion_ids]
    rows, columns = batch.loss_mask.nonzero(as_tuple=True)
    assert (batch.input_ids[rows, columns + 1] == batch.targets).all()
    first = columns[batch.positions == 0]
    assert first.tolist() == [len(r.prompt_ids) - 1 for r in rollouts]


def test_padded_head_rows_are_left_out_on_both_sides(gpt2_pair, student):
    teacher = load_model(ModelConfig(path=str(gpt2_pair[1])), "teacher")
    mine = replace(student)
    assert teacher.vocabulary > mine.vocabulary
    share_vocabulary({"student": mine, "teacher": teacher})
    batch = collate(mine.sample(prompts(mine), PARAMS, seed=0, step=0))
    for model in (mine, teacher):
        scores = model.score(batch)
        assert scores.shape[-1] == len(mine.tokenizer)
        torch.testing.assert_close(scores.exp().sum(-1), torch.ones(len(scores)), atol=1e-5, rtol=0)


def test_tokenizers_of_equal_size_with_two_ids_swapped_are_refused(student, gpt2_pair, tmp_path):
    path = gpt2_pair[0] / "tokenizer.json"
    text = path.read_text()
    one, two = '"What": ', '"Ġanswer": '
    vocabulary = student.tokenizer.get_vocab()
    a, b = vocabulary["What"], vocabulary["Ġanswer"]
    text = text.replace(f"{one}{a},", f"{one}{b},").replace(f"{two}{b},", f"{two}{a},")
    for file in gpt2_pair[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text(text)
    other = load_model(ModelConfig(path=str(tmp_path)), "teacher")
    with pytest.raises(UsageError, match=r"disagree on 2 of \d+ token ids \(first: \d+, 'What|Ġ"):
        require_same_tokens(student.tokenizer, other.tokenizer)
    require_same_tokens(student.tokenizer, student.tokenizer)


def test_the_context_is_found_under_every_name_it_has():
    from types import SimpleNamespace

    from transformers import Gemma3Config, GPT2Config, LlamaConfig, MptConfig

    configs = [
        LlamaConfig(max_position_embeddings=20),
        GPT2Config(n_positions=20),
        MptConfig(max_seq_len=20),
        Gemma3Config(text_config={"max_position_embeddings": 20}),
    ]
    for config in configs:
        model = SimpleNamespace(context=context_length(config))
        require_context(model, "student", 10, 10)
        with pytest.raises(UsageError, match="the student reads 20 tokens"):
            require_context(model, "student", 10, 11)


def test_a_short_context_proposes_no_limit_that_would_drop_most_prompts():
    from types import SimpleNamespace

    model = SimpleNamespace(context=64)
    for new_tokens, dropped in ((44, True), (54, False), (70, False)):
        with pytest.raises(UsageError, match=r"lower rollout.max_new_tokens to 24") as refused:
            require_context(model, "student", 40, new_tokens)
        assert ("set data.max_prompt_tokens to 20" in str(refused.value)) == dropped
        assert ("max_prompt_tokens" in str(refused.value)) == dropped


def test_chat_prompts_need_a_template(student):
    chat = [Prompt(id="c", messages=(Message("user", "hi"),))]
    with pytest.raises(UsageError, match="no chat template"):
        render(chat, student.tokenizer, PromptFormat(), 100)


def test_a_template_that_refuses_a_prompt_is_a_data_error():
    from tutelage.lab.models import make_tokenizer

    chat = [Prompt(id="c7", messages=(Message("system", "be brief"), Message("user", "a1")))]
    with pytest.raises(DataError, match=r"prompt 'c7'.*exactly one user turn"):
        render(chat, make_tokenizer(), PromptFormat(), 100)


def test_long_prompts_are_dropped_and_counted(student):
    rows = [Prompt(id="a", text="1"), Prompt(id="b", text="1 + " * 40)]
    kept, dropped = render(rows, student.tokenizer, PromptFormat(), 20)
    assert ([p.prompt.id for p in kept], dropped) == (["a"], 1)


def test_finished_rows_leave_the_batch_without_changing_the_others(student):
    """A batch in which rows end early gives the same tokens as rows decoded one by one."""
    rows = prompts(student, 30)
    longer = SamplingParams(max_new_tokens=25)
    together = student.sample(rows, longer, seed=5, step=0)
    assert sum(r.finish_reason == "stop" for r in together) > 15  # so the batch did shrink
    apart = replace(student, batch_size=1).sample(rows, longer, seed=5, step=0)
    assert [r.completion_ids for r in together] == [r.completion_ids for r in apart]


def test_equal_prompts_are_read_once(student):
    read = []
    hook = student.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rows = prompts(student, 2)
    student.sample(rows, PARAMS, group_size=5, seed=0, step=0)
    hook.remove()
    assert read[0][0] == 2
    assert read[1][0] == 10


def test_a_prompts_own_limit_ends_its_completions_and_changes_no_token(student):
    rows = prompts(student)
    free = student.sample(rows, PARAMS, seed=2, step=0)
    short = [replace(row, max_new_tokens=1 + i % 4) for i, row in enumerate(rows)]
    limited = student.sample(short, PARAMS, seed=2, step=0)
    for i, (one, other) in enumerate(zip(free, limited, strict=True)):
        assert other.completion_ids == one.completion_ids[: 1 + i % 4]
        ended = other.completion_ids[-1] in student.stop_ids
        assert other.finish_reason == ("stop" if ended else "length")

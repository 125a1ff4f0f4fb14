"""The other side: torch, transformers and PEFT, as someone who knows them well would use them for
the same jobs.

An adapter is scaled in place for each alpha (at 0 it is switched off); rows are sorted by length
and padded to the longest of a batch; attention is SDPA; logits are computed in the places of
answers only; training runs under autocast where the model is bfloat16, with the fused AdamW and no
checkpointing.
"""

import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import cases
import numpy as np
import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer

Row = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and completion


class Peft:
  """A checkpoint with an adapter on it, at any alpha."""

  def __init__(
    self, base: pathlib.Path, adapter: pathlib.Path | None, *, dtype: str, tokens_at_once: int
  ):
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.base, self.adapter, self.dtype, self.tokens_at_once = (
      base,
      adapter,
      getattr(torch, dtype),
      tokens_at_once,
    )
    self.model = self._load(base)
    if adapter:
      self.model = (
        peft.PeftModel.from_pretrained(self.model, adapter, autocast_adapter_dtype=False)
        .to(self.dtype)
        .eval()
      )
      self.layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]

  def _load(self, folder: pathlib.Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=self.dtype, attn_implementation='sdpa', device_map=self.device
    ).eval()

  def set_alpha(self, alpha: float) -> None:
    """Scales the adapter; the factor of the file is 1 here."""
    for layer in self.layers:
      layer.scaling['default'] = alpha
      layer._disable_adapters = alpha == 0.0

  def score(self, rows: Sequence[Row], alphas: Sequence[float]) -> np.ndarray:
    """Log-likelihoods of the completions, nats, [alphas, rows]."""
    found = []
    for alpha in alphas:
      self.set_alpha(alpha)
      found.append(self._score(self.model, rows))
    return np.stack(found)

  def score_merged(
    self, rows: Sequence[Row], alphas: Sequence[float], scratch: pathlib.Path
  ) -> np.ndarray:
    """The same by the route of the paper's code: for each alpha merge, save, load, evaluate."""
    found = []
    for alpha in alphas:
      self.set_alpha(alpha)
      if alpha:
        self.model.merge_adapter()
      weights = {
        name.replace('base_layer.', ''): tensor
        for name, tensor in self.model.get_base_model().state_dict().items()
        if 'lora_' not in name
      }
      self.model.get_base_model().save_pretrained(scratch, state_dict=weights)
      if alpha:
        self.model.unmerge_adapter()
      found.append(self._score(self._load(scratch), rows))
      shutil.rmtree(scratch)
    return np.stack(found)

  @torch.inference_mode()
  def _score(self, model: Any, rows: Sequence[Row]) -> np.ndarray:
    scores = np.zeros(len(rows))
    decoder = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    for batch in _by_length(rows, self.tokens_at_once):
      ids, mask, targets, places = _padded([rows[i] for i in batch], self.device)
      x = decoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
      logits = decoder.lm_head(x[places]).float()
      logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
      sums = torch.zeros(len(batch), device=self.device).index_add_(0, places[0], logprobs)
      scores[batch] = sums.cpu().numpy()
    return scores

  @torch.inference_mode()
  def generate(
    self, prompts: Sequence[tuple[int, ...]], alphas: Sequence[float], count: int
  ) -> np.ndarray:
    """Greedy continuations [alphas, prompts, count]."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
    mask = torch.tensor(
      [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device
    )
    found = []
    for alpha in alphas:
      self.set_alpha(alpha)
      out = self.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        pad_token_id=0,
        eos_token_id=None,
        use_cache=True,
      )
      found.append(out[:, longest:].cpu().numpy())
    return np.stack(found)


class Trainer:
  """LoRA on a checkpoint, step by step as the Hugging Face trainer goes: AdamW, clipping, linear
  warm-up and decay."""

  def __init__(self, base: pathlib.Path, *, dtype: str, rank: int):
    self.peft = Peft(base, None, dtype=dtype, tokens_at_once=0)
    self.rank, self.device = rank, self.peft.device
    self.bare = self.peft.model

  def fit(
    self,
    factors: dict[str, np.ndarray],
    batches: Sequence[Sequence[Any]],
    validation: Sequence[Any],
    options: Any,
    output: pathlib.Path,
  ) -> list[float]:
    """The loss of each step. A validation comes first and last, and the adapter is saved; the model
    is left as it was.

    Args:
      factors: {module: its first A}, so that both sides start alike.
    """
    adapted = peft.get_peft_model(
      self.bare,
      peft.LoraConfig(
        r=self.rank,
        lora_alpha=options.lora_alpha,
        target_modules=cases.MODULES,
        task_type='CAUSAL_LM',
      ),
    )
    for name, module in adapted.named_modules():
      if isinstance(module, LoraLayer):
        module.lora_A['default'].weight.data.copy_(
          torch.from_numpy(factors[name.removeprefix('base_model.model.')])
        )
    trained = [p for p in adapted.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(
      trained,
      lr=options.learning_rates[0],
      betas=(options.beta1, options.beta2),
      eps=options.epsilon,
      weight_decay=options.weight_decay,
      fused=True,
    )
    schedule = transformers.get_linear_schedule_with_warmup(
      adamw, options.warmup_steps, len(batches)
    )
    with torch.no_grad():
      self._loss(adapted, validation)
    losses = []
    adapted.train()
    for examples in batches:
      loss = self._loss(adapted, examples)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(trained, options.clip_norm)
      adamw.step()
      schedule.step()
      adamw.zero_grad(set_to_none=True)
      losses.append(loss.detach())
    adapted.eval()
    with torch.no_grad():
      self._loss(adapted, validation).item()
    adapted.save_pretrained(output)
    self.bare = adapted.unload()
    return [float(loss) for loss in losses]

  def _loss(self, model: Any, examples: Sequence[Any]) -> torch.Tensor:
    longest = max(map(len, examples))
    ids, mask, labels = np.zeros((3, len(examples), longest), np.int64)
    labels[:] = -100
    for row, example in enumerate(examples):
      ids[row, : len(example)], mask[row, : len(example)] = example.tokens, 1
      labels[row, : len(example)] = np.where(example.loss_mask, example.tokens, -100)
    on_device = [torch.tensor(x, device=self.device) for x in (ids, mask, labels)]
    with torch.autocast(self.device, torch.bfloat16, enabled=self.peft.dtype == torch.bfloat16):
      return model(input_ids=on_device[0], attention_mask=on_device[1], labels=on_device[2]).loss


def _by_length(rows: Sequence[Row], tokens_at_once: int) -> Iterator[list[int]]:
  """Rows of like lengths together, the longest first, at most so many tokens with padding."""
  batch: list[int] = []
  for i in sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1])):
    longest = len(rows[(batch or [i])[0]][0]) + len(rows[(batch or [i])[0]][1])
    if batch and (len(batch) + 1) * longest > tokens_at_once:
      yield batch
      batch = []
    batch.append(i)
  if batch:
    yield batch


def _padded(
  rows: Sequence[Row], device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
  """(ids, mask, targets, (row, place) that each target is predicted from); a row goes in without
  its last token."""
  longest = max(len(prompt) + len(completion) for prompt, completion in rows) - 1
  ids, mask = np.zeros((2, len(rows), longest), np.int64)
  places, targets = [], []
  for i, (prompt, completion) in enumerate(rows):
    whole = (prompt + completion)[:-1]
    ids[i, : len(whole)], mask[i, : len(whole)] = whole, 1
    places += [(i, len(prompt) - 1 + j) for j in range(len(completion))]
    targets += completion
  row, place = torch.tensor(places, device=device).T
  return (
    torch.tensor(ids, device=device),
    torch.tensor(mask, device=device),
    torch.tensor(targets, device=device),
    (row, place),
  )

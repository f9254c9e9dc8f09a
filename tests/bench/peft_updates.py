"""transformers + PEFT on updates that were written down: the loss of each, from the adapter it starts with and saves.

One sample at a time, its gradient added to the update's, so that no padding and no mask stands between the losses and
insula's: cross entropy summed over the target tokens of the whole update, divided by their number. torch's AdamW with its
defaults and no decay, constant learning rate, clipped to a norm of 1: what `insula bench engine --batches` computes.

    python peft_updates.py --model DIR --batches FILE --save-adapter DIR [--r 16] [--lr 2e-4]

FILE: a line an update, a JSON list of {"prompt", "target"}; without --batches, the adapter is saved and nothing computed.
"""

import argparse, json, time, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

arguments = argparse.ArgumentParser()
arguments.add_argument("--model", required=True)
arguments.add_argument("--batches", required=True)
arguments.add_argument("--save-adapter", required=True, help="where the adapter is saved before the first update")
arguments.add_argument("--r", type=int, default=16)
arguments.add_argument("--lr", type=float, default=2e-4)
arguments.add_argument("--seed", type=int, default=0)
a = arguments.parse_args()

torch.manual_seed(a.seed)
tokenizer = AutoTokenizer.from_pretrained(a.model)
model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation="sdpa")
targets = ["q_proj", "k_proj", "v_proj"]
lora = LoraConfig(task_type="CAUSAL_LM", r=a.r, lora_alpha=a.r, lora_dropout=0.0, target_modules=targets, bias="none")
model = get_peft_model(model, lora)
model.save_pretrained(a.save_adapter)
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=a.lr, weight_decay=0.0)
model.train()


def encoded(sample):
    prompt = tokenizer(sample["prompt"]).input_ids
    target = tokenizer(sample["target"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return prompt, target


def update(samples):
    """The mean loss over the update's target tokens; the gradient is left in the parameters."""
    tokens = sum(len(target) for _, target in samples)
    total = 0.0
    for prompt, target in samples:
        ids = torch.tensor([prompt + target])
        logits = model(input_ids=ids, logits_to_keep=len(target) + 1).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


losses, began = [], time.time()
for line in open(a.batches, encoding="utf-8"):
    losses.append(update([encoded(sample) for sample in json.loads(line)]))
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
print(json.dumps({"losses": losses, "seconds": round(time.time() - began, 2)}))

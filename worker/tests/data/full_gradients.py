"""Makes full_gradients.json: gradients of all weights of tiny Llamas by torch's autograd, in float64.

    python full_gradients.py FOLDER_OF_TINY_MODELS > full_gradients.json

For each model: the cross entropy summed over the target tokens of golden.json's sequences, each sequence apart, and of
every weight's gradient its Frobenius norm and its scalar product with the pattern (i * 37 mod 11) - 5.
Needs torch and transformers.
"""

import json
import pathlib
import sys

import torch
import transformers

MODELS = ["llama-gqa-tied", "llama2-mha"]


def pattern(count):
    return (torch.arange(count, dtype=torch.int64) * 37 % 11 - 5).double()


def golden(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model.config._attn_implementation = "eager"
    loss = 0.0
    for sequence in json.loads((folder / "golden.json").read_text())["sequences"]:
        prompt, target = sequence["prompt"], sequence["target"]
        logits = model(torch.tensor([prompt + target])).logits[0].double()
        predicting = logits[len(prompt) - 1 : -1]
        loss = loss + torch.nn.functional.cross_entropy(predicting, torch.tensor(target), reduction="sum")
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.flatten()
        along = torch.dot(gradient, pattern(gradient.numel()))
        gradients[name] = {"norm": gradient.norm().item(), "along": along.item()}
    return {"loss": loss.item(), "gradients": gradients}


def main():
    folder = pathlib.Path(sys.argv[1])
    made = {name: golden(folder / name) for name in MODELS}
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "models": made}, indent=1))


main()

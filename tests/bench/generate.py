"""transformers' greedy answers to the first test prompts, each with its margin: the least gap, in logits, between what was
chosen and the runner-up.

    python generate.py --peers DIR --model DIR --csv FILE --adapter DIR [--n 96] [--batch 8] [--max-new-tokens 5]
"""

import argparse, json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

arguments = argparse.ArgumentParser()
arguments.add_argument("--peers", required=True, help="the folder with prompts.py")
arguments.add_argument("--model", required=True)
arguments.add_argument("--csv", required=True)
arguments.add_argument("--adapter", required=True)
arguments.add_argument("--kind", default="meld")
arguments.add_argument("--window", type=int, default=12)
arguments.add_argument("--n", type=int, default=96)
arguments.add_argument("--batch", type=int, default=8)
arguments.add_argument("--max-new-tokens", type=int, default=5)
a = arguments.parse_args()
sys.path.insert(0, a.peers)
import prompts

tokenizer = AutoTokenizer.from_pretrained(a.model, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
model = PeftModel.from_pretrained(model, a.adapter).merge_and_unload().eval()
samples = [prompt for prompt, _ in prompts.samples(a.csv, a.kind, a.window)[: a.n]]
answers = []
with torch.inference_mode():
    for first in range(0, len(samples), a.batch):
        encoded = tokenizer(samples[first : first + a.batch], return_tensors="pt", padding=True)
        asked = dict(max_new_tokens=a.max_new_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True)
        out = model.generate(**encoded, **asked)
        new = out.sequences[:, encoded.input_ids.shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        gaps = [logits.topk(2).values.diff().abs().flatten() for logits in out.logits]
        for row, text in enumerate(texts):
            ended = [i for i, token in enumerate(new[row].tolist()) if token == tokenizer.eos_token_id]
            steps = ended[0] + 1 if ended else len(gaps)
            answers.append({"answer": text, "margin": min(gap[row].item() for gap in gaps[:steps])})
print(json.dumps(answers))

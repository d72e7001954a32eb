"""A small suite of our schemes and a model of transformers, in llama.json."""

SUITE = """
[suite]
name = "mixed"
[model]
width = 32
layers = 2
heads = 4
[data]
tokenizer = "bpe"
vocabulary = 512
[train]
sequence = 32
batch = 4
learning_rate = 5e-3
precision = "float32"
evaluations = 1
[measure]
steps = ["audit", "train", "heldout", "memory", "timing"]
heldout_tokens = 256
curve_tokens = 128
[time]
repetitions = 1
samples = 3
warm_up_seconds = 0
[sweep]
budgets = [4e8]
[[schemes]]
router = "vanilla"
[[schemes]]
router = "mod"
[[schemes]]
label = "Llama"
model = { hf = "llama.json" }
"""

"""modbench's own lm-eval tasks, each a folder with its YAML. Imports nothing heavy, so that names can be
checked before lm-eval is loaded.
"""

from pathlib import Path

FOLDER = Path(__file__).parent

#: Our tasks by name, and the accuracy of guessing.
CHANCE = {"modbench_cloze": 0.25}

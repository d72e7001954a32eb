"""Model types of retrofitted models."""

#: Start of the model types that `modbench.hf.retrofit` registers.
PREFIX = "modbench_"

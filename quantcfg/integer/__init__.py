"""The model in integer arithmetic: what a chip computes, op by op, beside the fake-quant model."""

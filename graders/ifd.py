"""Instruction-following difficulty by a model of this machine: `ifd:MODEL.gguf`, `ifd:FOLDER`. Nothing is paid.

The perplexity of the output after the instruction over its perplexity alone (arXiv 2308.12032, 2402.00530): what each
figure is, `graders/local/measures.py` says; how it is measured, `graders/local/likelihood.py`.
"""

from alpasift.graders.local.likelihood import likelihood_kind

KIND = likelihood_kind("ifd")

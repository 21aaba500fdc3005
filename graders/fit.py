"""How likely the output is to the model that is to be trained: `fit:MODEL.gguf`, `fit:FOLDER`. Nothing is paid.

The mean log-probability of the output's tokens in the model's chat template (arXiv 2502.04194): what each figure is,
`graders/local/measures.py` says; how it is measured, `graders/local/likelihood.py`.
"""

from alpasift.graders.local.likelihood import likelihood_kind

KIND = likelihood_kind("fit")

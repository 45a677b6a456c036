"""Scoring inside vLLM: no log-probability leaves the worker, and a collapsing trace ends there.

A request says in its `extra_args` how its trace is to be scored (`_watch`). In the worker, the
logits processor of its model runner (`_v1`, `_v2`) takes the k largest log-probabilities of each
row on the device; a step later the Rust core makes confidences of them, slides the windows and says
which traces stop (`_rows`, `_ledger`), and those rows get a token that ends them. What was found is
fetched when a trace has ended (`_extension` there, `_reports` here). The processors are chosen by
name, since vLLM loads entry points into every engine of an environment.
"""

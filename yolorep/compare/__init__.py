"""`yolorep compare`: train stock and candidates on the user's data, in pairs, and say what the data can show.

plan: arms, seeds and schedule. runs: one training, in a separate process. processes: several at a time; they end with
their parent. stages: sweep of the learning rate, equal epochs, equal time. intervals: statistics. costs: step, memory
and latency. report: table, plot, Markdown, LaTeX.
"""

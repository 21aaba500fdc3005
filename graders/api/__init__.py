"""What the graders that speak OpenAI's API share.

connection, keys             the way to a server, and the key
model_families, wire_format  what a model takes; the body of a request, and the reply in an answer
api_errors                   what an error means
tokens                       how many tokens a prompt has at most
prices                       what a reply cost; `price_lookup` finds a price, in `price_file` or `listed_prices`
call_scheduler               calls one by one, many in flight (`call_threads`)
request_files, result_files  the two files of a batch
batch_worker                 batches: send, look after, collect; begin there
"""

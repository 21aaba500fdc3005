"""Row formats: one row of a file <-> the content that is graded. Start with `rows`: `reader`, `restore` and `convert`.

    alpaca    {"instruction", "input"?, "output"}
    dolly     {"instruction", "context", "response", "category"}
    sharegpt  {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}
    messages  {"messages": [{"role", "content"}]}; content is text or a list of {"type": "text", "text"}
    mapped    alpaca with other names for its keys (--map)

Knows keys, roles and what makes a row unusable; nothing of files or tables. Reading a row splits it into its content
(system, turns, instruction, input, output), its category, and its other keys. A `system` key is content too. `detect`
finds the format, `flat` and `messages` read and restore it, and `other_keys` keeps what is not content.
"""

"""`warmroute bench`: the same work on two sides, and every figure as a ratio of the two.

`run` is the door: it takes `work` (what users do; `replay` reads it from a trace), has it played on each side
(`measuring`), and hands the `figures` to `report` (tables, JSON) and `page` (HTML). An endpoint is known by its OpenAI
API alone.
"""

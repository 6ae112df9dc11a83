"""The decision: who should serve a request, and what is in flight. Pure: no await, no clock, no socket, no pydantic.

Requests come in by `decision`; events and probes change `fleet`. Time comes in as an argument, facts go out as values.
It never writes a log or a metric.
"""

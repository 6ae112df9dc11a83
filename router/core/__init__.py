"""The decision: who should serve a request, and what is in flight. Pure: no await, no clock, no socket, no pydantic.

Requests come in by `decision` (`look_up`, `route`, `finish`), once each and in this order; what probes and operators
say, by `fleet`; what events say changes the feeds that it was given. Time comes in as an argument, facts go out as
values. It never writes a log or a metric, and knows no configuration but its own `settings`.
"""

"""What we answer: the dispatcher, `/score`, operators' pages, and who may ask.

`app` is the door for all that comes in; clients' requests to models go on to `data_plane`, which has them understood
(`tokens`) and forwarded (`proxy`). It never decides who serves.
"""

"""What we answer: the dispatcher, `/score`, operators' pages, and who may ask.

`app` is the door. Clients' requests to models go through `data_plane`.
"""

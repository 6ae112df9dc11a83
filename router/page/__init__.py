"""The page `/ui`: what operators see of the fleet, as it goes on.

`routes` is the door. One `audience` a process draws one picture a second for all who look, and none while nobody does;
what the picture shows is made in `picture` of `rows`, `course`, and what each worker tells of itself (`account`). Who
has shown the operator key once may go on looking by a pass (`passes`). It decides nothing, and never knows a prompt.
"""

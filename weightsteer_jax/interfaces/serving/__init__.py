"""An OpenAI-compatible server, where the strength comes with the request.

server.py     a server from its options: loaded, compiled, opened, ended
loading.py    a model and its directions, loaded
terminal.py   a chat in the terminal
typed.py      strengths as they are typed there
app.py        the web application: paths, streams, refusals
bodies.py     bodies of requests, checked: what is asked, in tokens
strengths.py  strengths of a request, from its fields or its model's name
worker.py     the thread that owns the device
texts.py      a growing answer as text
replies.py    replies in the shapes of OpenAI's interfaces
refusals.py   refusals in the shape of OpenAI's errors
counts.py     what a server counts, for Prometheus
"""

"""The audit: from a table of training data to what is wrong with it, checked by refitting.

As a function it is `proponent.audit.run.audit`.
"""

from proponent.verbs import also_a_verb

also_a_verb(__name__, "proponent.audit.run.audit")

"""The modules that users make: records, synapses, delayed layers.

What they use of ``torch.nn.Module`` beyond its documented interface, all of it here:

* ``_buffers[name]`` and ``_modules[name]`` are read in steps, past ``__getattr__``, which costs as
  much as several small tensor operations; ``_modules`` is also set, to rebuild a record.
* ``__dict__["_cursor"]`` is set in :meth:`RecordTensor.advance`, past ``__setattr__``.
* ``_parameters`` and ``_buffers`` tell where a constant is kept now, and what a state has to fit.
* ``_save_to_state_dict``, ``_load_from_state_dict`` and ``local_metadata``'s
  ``"assign_to_params_buffers"``, for the pointer of a record and checks before anything changes.
* ``Tensor._version`` counts writes, by which a record knows that it is still at rest.
"""

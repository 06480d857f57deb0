"""The modules that users make: records, synapses, delayed layers.

What they use of ``torch.nn.Module`` beyond its documented interface, all of it here:

* ``_buffers[name]`` and ``_modules[name]`` are read in steps, past ``__getattr__``, which costs as
  much as several small tensor operations.
* ``__dict__["_cursor"]`` is set in :meth:`RecordTensor.advance`, past ``__setattr__``.
* ``_parameters``, ``_buffers`` and ``_non_persistent_buffers_set`` tell where a constant is kept
  now, and what a state has to fit; FSDP2's exchange of a constant is set in ``_parameters``.
* ``_apply`` and ``_replicate_for_data_parallel``, to convert records, and to refuse copies.
* ``_save_to_state_dict``, ``_load_from_state_dict`` and ``local_metadata``'s
  ``"assign_to_params_buffers"``, ``_load_state_dict_pre_hooks`` and the frame of a running
  ``load_state_dict``, for the pointer of a record and checks before anything changes.
* ``torch._C._current_graph_task_id``, ``_is_tracing`` and ``forward_ad._current_level``, to refuse
  what would repeat or freeze a run.
* ``Tensor._version`` counts writes, by which a record knows that it is still at rest.
"""

"""Which tests are to notice what is broken in which room: the quick ones of each, the first to notice first."""

from __future__ import annotations

__all__ = ["ROOMS", "files_for", "room_of"]

#: By the beginning of a file's path in the package, the tests of it, the longest beginning counts. Paths are below ``tests``.
ROOMS: dict[str, tuple[str, ...]] = {
    "bridge/": ("unit/test_served_parts.py", "unit/test_bridge_parts.py",
        "unit/test_printable.py", "unit/test_payloads.py", "integration/test_bridge_calls.py", "integration/test_bridge.py",
        "integration/test_bridge_clients.py", "integration/test_bridge_abuse.py", "integration/test_security.py",
    ),
    "cli/": ("unit/test_counted.py", "unit/test_programs.py", "unit/test_command_results.py",
        "unit/test_figures.py", "unit/test_commands_page.py", "unit/test_status_table.py", "unit/test_commands.py", "unit/test_checks.py", "integration/test_cli.py",
        "integration/test_operating.py", "integration/test_top.py",
    ),
    "client/": ("unit/test_payload_messages.py", "unit/test_sent_again.py", "unit/test_small_modules.py", "unit/test_remote_chunks.py", "property/test_tool_messages.py", "integration/test_connect.py"),
    "config/": ("unit/test_bridge_parts.py", "unit/test_options.py", "unit/test_config.py", "unit/test_timeouts.py", "unit/test_surface.py", "integration/test_default_timeout.py"),
    "control/": ("unit/test_operations.py", "unit/test_control_connections.py",
        "unit/test_figures.py", "unit/test_control_client.py", "unit/test_control_protocol.py", "integration/test_control.py",
    ),
    "launch/": ("unit/test_process_parts.py", "unit/test_small_modules.py", "unit/test_bridge_parts.py",
        "unit/test_handle.py", "unit/test_futures.py", "unit/test_interpreter.py", "unit/test_reseeding.py",
        "unit/test_leftovers.py", "unit/test_registered_launchers.py", "integration/test_launchers.py", "integration/test_helpers.py",
    ),
    "observe/": ("unit/test_served_parts.py", "unit/test_collected.py",
        "unit/test_redaction.py", "unit/test_dump.py", "unit/test_printable.py", "unit/test_event_bus.py",
        "unit/test_timings.py", "unit/test_catalogue.py", "integration/test_metrics.py", "integration/test_tracing.py",
    ),
    "policies/": ("unit/test_guarded_streams.py",
        "property/test_circuit.py", "unit/test_verdicts.py", "simulation/test_policies.py", "simulation/test_policy_walks.py",
    ),
    "pool/": ("unit/test_counted.py", "unit/test_given.py",
        "property/test_structures.py", "unit/test_placement.py", "unit/test_suspects.py", "unit/test_scaling.py",
        "unit/test_time_limits.py", "property/test_scheduler.py", "property/test_scheduler_faults.py", "simulation/test_stuck.py", "simulation/test_time_limits.py", "simulation/test_requests.py", "simulation/test_maps.py",
        "simulation/test_replacing.py", "simulation/test_paused_calls.py", "simulation/test_scaling.py",
        "simulation/test_repertoire.py", "simulation/test_simulator.py", "integration/test_main_path.py",
    ),
    "sessions/": (
        "unit/test_served_parts.py",
        "unit/test_names.py", "property/test_stores.py", "property/test_odd_rows.py", "property/test_two_hosts.py", "simulation/test_session_directory.py",
        "integration/test_host_programs.py",
    ),
    "testing/": ("unit/test_faults.py", "unit/test_small_modules.py", "unit/test_edges.py", "unit/test_scripted.py", "simulation/test_simulator.py", "integration/test_testing.py"),
    "tools/": ("unit/test_surface.py", "unit/test_counted.py", "unit/test_given.py",
        "unit/test_edges.py", "property/test_waits.py", "property/test_tool_registry.py", "property/test_tool_messages.py", "unit/test_schemas.py",
        "unit/test_equivalence.py", "unit/test_host_tool_server.py", "integration/test_host_tools.py",
    ),
    "wire/codec/": ("unit/test_wire_parts.py", "unit/test_counted.py",
        "property/test_codec.py", "unit/test_refused_values.py", "unit/test_tables.py", "integration/test_values_cross.py",
    ),
    "wire/http2/": ("unit/test_wire_parts.py", "unit/test_turns.py", "property/test_lean_h2.py", "property/test_pipe.py", "integration/test_wires.py",
        "integration/test_plain_h2.py",
    ),
    "wire/": ("unit/test_wire_parts.py", "unit/test_exits.py",
        "unit/test_authority.py", "property/test_frames.py", "property/test_messages.py", "property/test_failures.py", "property/test_memory.py", "unit/test_mapping.py",
        "property/test_tool_messages.py", "property/test_stream_credit.py", "unit/test_begun.py", "unit/test_handshake.py", "property/test_handshake_messages.py",
        "unit/test_exceptions.py", "unit/test_payload_messages.py", "integration/test_wires.py", "integration/test_shared_memory.py",
    ),
    "worker/": (
        "unit/test_worker_calls.py", "unit/test_worker_exchange.py", "unit/test_worker_tasks.py", "unit/test_shared_loop.py", "unit/test_main_thread.py",
        "unit/test_adapters.py", "unit/test_schemas.py", "unit/test_forks.py", "unit/test_lines.py", "unit/test_begun.py", "integration/test_main_path.py", "integration/test_cancellation.py",
        "integration/test_plain_rpcs.py", "integration/test_host_tools.py",
    ),
    "supervision/": ("unit/test_process_parts.py", "unit/test_exits.py",
        "unit/test_restarts.py", "unit/test_run.py", "unit/test_leftovers.py", "unit/test_state_directory.py",
        "unit/test_handshake.py", "simulation/test_grace.py", "simulation/test_heartbeats.py",
        "simulation/test_replacing.py", "simulation/test_simulator.py", "integration/test_supervision.py",
    ),
    # The small modules beside the rooms, and the runtime itself.
    "": ("unit/test_process_parts.py", "unit/test_small_modules.py",
        "unit/test_edges.py", "unit/test_bulkhead.py", "unit/test_config.py", "unit/test_forks.py", "unit/test_hardware.py",
        "unit/test_exceptions.py", "unit/test_script.py", "unit/test_timeouts.py", "unit/test_call_options.py",
        "unit/test_unwrapped.py", "unit/test_private_names.py", "property/test_fair_budget.py", "simulation/test_requests.py",
        "integration/test_main_path.py", "integration/test_plain_asyncio.py",
    ),
}  # fmt: skip
#: The same for files whose tests are others than those of their room; they still belong to it.
OTHERS: dict[str, tuple[str, ...]] = {
    "wire/http2/server_engine.py": (
        "unit/test_server_engine.py",
        "integration/test_bridge.py",
        "integration/test_bridge_abuse.py",
    ),
    "bridge/session_shares.py": ("unit/test_session_shares.py", "integration/test_bridge_abuse.py"),
    "bridge/mcp": (
        "unit/test_served_parts.py",
        "integration/test_mcp.py",
    ),
    "bridge/tokens.py": ("unit/test_tokens.py", "integration/test_security.py"),
    "bridge/listening.py": (
        "unit/test_served_parts.py",
        "unit/test_tls_files.py",
        "integration/test_bind.py",
        "integration/test_security.py",
    ),
    "observe/correlation.py": (
        "unit/test_process_parts.py",
        "unit/test_worker_calls.py",
        "integration/test_tracing.py",
    ),
    "observe/line_levels.py": ("unit/test_worker_output.py", "unit/test_exits.py"),
    "observe/worker_output.py": ("unit/test_worker_output.py", "integration/test_output.py"),
    "worker/stderr.py": ("unit/test_worker_output.py", "integration/test_output.py"),
    "bridge/reflection.py": ("unit/test_served_parts.py", "integration/test_bridge.py"),
    "worker/__main__.py": ("unit/test_programs.py", "integration/test_launchers.py"),
    "worker/prelude.py": ("unit/test_programs.py", "integration/test_launchers.py"),
    "_platform/": (
        "unit/test_platform.py",
        "integration/test_launchers.py",
        "integration/test_helpers.py",
        "integration/test_portable.py",
    ),
    "launch/template.py": ("unit/test_programs.py", "integration/test_launchers.py", "integration/test_helpers.py"),
    "cli/serve.py": ("unit/test_given.py", "integration/test_cli.py"),
    "cli/new.py": (
        "unit/test_command_results.py",
        "integration/test_new.py",
    ),
    "client/host_tools.py": (
        "unit/test_small_modules.py",
        "integration/test_connect.py",
        "integration/test_bridge_clients.py",
    ),
    "launch/reseeding.py": ("unit/test_reseeding.py",),
    "observe/recorder.py": ("unit/test_process_parts.py", "unit/test_dump.py", "integration/test_recorder.py"),
    "policies/options.py": ("unit/test_options.py", "unit/test_config.py", "simulation/test_policies.py"),
    "pool/calls/affinity.py": (
        "unit/test_given.py",
        "simulation/test_session_blocks.py",
        "integration/test_sessions.py",
    ),
    "launchers.py": ("unit/test_registered_launchers.py", "integration/test_own_launchers.py"),
    "pool/calls/session.py": (
        "simulation/test_session_blocks.py",
        "simulation/test_requests.py",
        "integration/test_sessions.py",
    ),
    "bridge/mcp_stdio.py": ("unit/test_edges.py", "integration/test_mcp.py"),
    "launch/command.py": (
        "unit/test_process_parts.py",
        "unit/test_edges.py",
        "integration/test_launchers.py",
        "integration/test_foreign.py",
    ),
    "worker/lifeline.py": ("unit/test_edges.py", "integration/test_launchers.py"),
    "worker/importing.py": ("unit/test_adapters.py", "unit/test_edges.py", "integration/test_launchers.py"),
    "launch/authority.py": ("unit/test_authority.py", "integration/test_bounds.py"),
    "launch/choice.py": ("unit/test_choice.py", "integration/test_launchers.py"),
    "worker/context.py": ("unit/test_context.py", "unit/test_worker_calls.py", "integration/test_main_path.py"),
    "worker/shared_loop.py": (
        "unit/test_shared_loop.py",
        "property/test_shared_loop.py",
        "integration/test_worker_io.py",
    ),
    "worker/tracing.py": ("unit/test_worker_tracing.py", "integration/test_tracing.py"),
    "supervision/plain_link.py": ("integration/test_foreign.py",),
    "supervision/answers.py": (
        "unit/test_process_parts.py",
        "unit/test_status_table.py",
        "integration/test_foreign.py",
    ),
    "supervision/health.py": ("simulation/test_health.py", "integration/test_supervision.py"),
}

#: What is no room's to test: generated, data, what runs on a cluster, and what measures.
LEFT_OUT = (
    "wire/generated/",
    "launch/ray",
    "config/ray.py",
    "__main__.py",
    "cli/bench_tools.py",
    "cli/trivial.py",
    "cli/demo.py",
)


def room_of(path: str) -> str | None:
    """The room of a file of the package, None for what no test is for."""
    if path.startswith(LEFT_OUT):
        return None
    return max((room for room in ROOMS if path.startswith(room)), key=len)


def files_for(path: str) -> list[str]:
    """The tests of a file, in the order in which they are run."""
    tables = {**ROOMS, **OTHERS}
    own = tables[max((start for start in tables if path.startswith(start)), key=len)]
    return [f"tests/{name}" for name in own]

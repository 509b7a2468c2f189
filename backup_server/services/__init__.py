"""What the server can be asked to do. The doors (API, web, CLI) and the scheduler call these functions
and nothing below them.

Every function takes the `Context` first. Objects are named by `ref`: an id or a name. Answers are plain
dicts in the shapes of docs/reference/api.md (times are RFC 3339 text). Errors are those of
`backup_server.errors`; `InvalidError.details` maps each bad field to its reason.

| module | functions |
|---|---|
| `bootstrap` | `open_context(settings, *, clock, vsphere, start_agent=None) -> Context`: database migrated, keys made, default proxy made |
| `about` | `about(ctx)`, `health(ctx)` |
| `vcenters` | `list_all(ctx)`, `get(ctx, ref)`, `probe(ctx, host, port)`, `add(ctx, *, name, host, port, username, password: Secret, thumbprint_sha256)`, `edit(ctx, ref, changes)`, `remove(ctx, ref)`, `inventory(ctx, ref, *, refresh=False)`, `load_inventory(ctx, vcenter_id, *, max_age_s=None) -> Inventory` |
| `repositories` | `list_all(ctx)`, `get(ctx, ref)`, `add(ctx, *, name, location, password: Secret, block_size_bytes=None, max_tasks=None, import_existing=False)`, `edit(ctx, ref, changes)`, `remove(ctx, ref)`, `check(ctx, ref, *, read_data=False, sample_share=None)`, `rescan(ctx, ref)`, `prune(ctx, ref)` (the last three answer a Session), `refresh_space(ctx, repository_id)` |
| `repository_keys` | `list_all(ctx, ref)`, `add(ctx, ref, *, kind, password=None, label="")`, `change(ctx, ref, *, new_password, old_password=None)`, `revoke(ctx, ref, key_ref)`, `rotate(ctx, ref, *, without=())`, `use(ctx, ref, password)`, `upgrade(ctx, ref)` |
| `proxies` | `list_all(ctx)`, `get(ctx, ref)`, `add(ctx, *, name, slots=None, local=False, description="")` (with `join_token` when not local), `edit(ctx, ref, changes)`, `remove(ctx, ref)`, `enrol(ctx, *, token, name, signing_key, sealing_key, version)`, `ensure_default(ctx)`, `write_local_proxies(ctx)` |
| `jobs` | `list_all(ctx)`, `get(ctx, ref)`, `create(ctx, data)`, `edit(ctx, ref, changes, *, confirm_removal=False)`, `remove(ctx, ref)`, `set_enabled(ctx, ref, enabled)`, `plan(ctx, ref)`, `run(ctx, ref, *, full=False, only_failed=False, ignore_window=False)` (answers a Session) |
| `retention` | `preview(ctx, ref, retention=None, *, vm=None)`, `apply_job(ctx, ref)`, `daily(ctx)`, `apply(ctx, work)` after a backup; rules in `retention_rules`, VMs that no job takes in `protection` |
| `verification` | `start(ctx, ref, *, sample_share=None, read_data=False)` (answers a Session), `begin(db, row, *, now, share=None, trigger)` inside a transaction; marks of lost data in `damage` |
| `schedule` | `next_run(schedule, after) -> datetime or None`, `due_runs(schedule, since, now) -> Due(fire, missed)`, pure |
| `windows` | `is_open(window, at)`, `next_change(window, at)`, `next_open(window, at)`, `parse(text, time_zone)`, `describe(window)`, `check_window(value)`, pure; `job_windows`: which sessions may run, when a schedule starts a job; `stopping`: `stop(db, session, reason, now)`; `unfinished`: what a stopped session left |
| `chains` | `start_followers(db, session, result, now)` in the transaction that ends a session, `circle(db, job_id, values)` |
| `instances` | several servers on one database: `check_keys(db, settings)`, `of_here(db, settings, proxies)` |
| `sessions` | `list_all(ctx, *, job=None, state=None, kind=None, limit=100, after=None)`, `get(ctx, session_id, *, limit=100, after=None, only=None)`, `cancel(ctx, session_id)`, `events(ctx, session_id, *, after=0, limit=1000)`, `why(ctx, task_id)`, `start_backup(db, job, *, now, options=None, ...) -> Session row` inside the caller's transaction |
| `restore_points` | `list_all(ctx, *, vm=None, repository=None, job=None, orphaned=False, limit=100, after=None)`, `get(ctx, ref)`, `resolve(ctx, ref) -> id` (id, id prefix, `VM@latest`, `VM@<n>` the newest is 1, `VM@<time prefix>`), `remove(ctx, ref)` |
| `restores` | `restore_disk(ctx, request)`, `restore_vm(ctx, request)` (answer a Session) |
| `events` | `record(db, now, name, text, *, session_id=None, task_id=None, level="info")` inside a transaction |
| `task_secrets` | `redeem(ctx, proxy_id, task_id, attempt) -> TaskSecrets` |
| `doctor` | `run_checks(ctx) -> [{name, level, text, advice}]` |
| `engine` | `SessionEngine(ctx)` with `start()`, `stop()`, `run_once()` |
| `janitor` | `Janitor(ctx)` with `start()`, `stop()`, `run_once()` |
| `history` | `forget(ctx)`: sessions older than `history_days` |
| `tasks` | inside a transaction: `start_attempt`, `expire_leases`, `cancel_session_tasks(db, session_id, now)` |
| `pending` | inside a transaction: `explain`, `give_up`, `give_up_all(db, {task id: reason}, now)` |
| `results` | inside a transaction: `apply_results(db, [(proxy_id, report)], *, policy, now)`, `try_again` |
| `leases` | inside a transaction: `renew_leases`, `record_progress`, `holds_attempt` |
| `placement` | `decide(wish, proxies, limits, *, claimed_by=None) -> Decision`, `wish_of`; `surveys`: `Surveyor.follow(proxies)`, `survey(wish) -> Survey`; pure |
| `proxy_door` | `ProxyDoor(ctx).answer(envelope, class of question) -> envelope`, `server_verify_key(ctx)` |
"""

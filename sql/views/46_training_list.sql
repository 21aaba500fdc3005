-- One row per training: what it trained, its progress, and its machine time and cost.
create or replace view training_list as
with parts as (
    select
        p.training_id, count(*) as parts, arg_max(coalesce(e.outcome, 'running or crashed'), p.started_at) as outcome,
        arg_max_null(e.message, p.started_at) as message, arg_max(p.device, p.started_at) as device,
        min(p.started_at) as started_at,
        sum(coalesce(e.seconds, t.seconds)) as seconds,
        sum(coalesce(e.seconds, t.seconds) / 3600 * p.usd_per_hour::double) as machine_usd
    from training_parts p
    left join training_part_ends e using (part_id)
    left join (select part_id, max(seconds) as seconds from training_steps group by part_id) t using (part_id)
    group by p.training_id
), curve as (
    select
        training_id, max(step) as step, arg_max(loss, step) as loss, max(peak_bytes) as peak_bytes,
        median(tokens_per_second) as tokens_per_second
    from training_curve
    group by training_id
)
select
    t.training_id, t.folder, t.base, t.recipe, t.method, p.outcome, c.step,
    (t.facts::json ->> 'steps')::integer as steps,
    c.loss, c.tokens_per_second, c.peak_bytes, p.seconds, p.machine_usd, p.parts, p.device, p.message, p.started_at,
    t.version_id, t.selection_id
from trainings t
join parts p using (training_id)
left join curve c using (training_id);

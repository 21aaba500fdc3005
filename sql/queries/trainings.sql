-- The newest trainings, one row each: progress, speed, memory, time and cost. Parameters: row_limit.
select
    started_at, recipe, method, base, folder, outcome, step, steps, round(loss, 4) as loss,
    round(tokens_per_second) as tokens_per_second, round(peak_bytes / 1024 ** 3, 2) as peak_gib,
    round(seconds, 1) as seconds,
    machine_usd, parts, device, message
from training_list
order by started_at desc, training_id
limit coalesce($row_limit::bigint, 20);

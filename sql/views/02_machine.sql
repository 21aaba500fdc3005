-- One row: the machine account, separate from API dollars: hours of runs and trainings, and their cost where a rate
-- was known. A training without an end counts up to its last step.
create or replace view machine as
with took as (
    select seconds, usd_per_hour from run_ends
    union all
    select coalesce(e.seconds, (select max(s.seconds) from training_steps s where s.part_id = p.part_id)),
        p.usd_per_hour
    from training_parts p
    left join training_part_ends e using (part_id)
)
select
    coalesce(sum(seconds), 0) as seconds,
    sum(seconds / 3600 * usd_per_hour::double) as usd,
    count(*) filter (where usd_per_hour is null) as runs_without_rate
from took
where seconds is not null;

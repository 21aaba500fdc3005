-- Internal.
-- The batches of a setup that are at the provider, oldest first: what was last known of each, its age in seconds, and
-- within how many seconds nine of ten batches that this database has collected had come (null for fewer than three of
-- them). Parameters: setup_id.
with ended as (
    select quantile_cont(epoch(seen_at - opened_at), 0.9) as usual_seconds, count(*) as batches
    from batches
    where closed and kind = 'batch' and batch_id <> '' and spent_usd > 0
)
select
    b.batch_id, b.phase, b.lines,
    greatest(0, epoch(now() at time zone 'UTC' - b.opened_at)) as age_seconds,
    case when e.batches >= 3 then e.usual_seconds end as usual_seconds
from batches b
cross join ended e
where not b.closed and b.kind = 'batch' and b.batch_id <> '' and b.setup_id = $setup_id
order by b.opened_at, b.attempt_id;

-- One row: the machine account, apart from API dollars: hours that runs took on this machine, and their dollars where a
-- rate was known.
create or replace view machine as
select
    coalesce(sum(seconds), 0) as seconds,
    sum(seconds / 3600 * usd_per_hour::double) as usd,
    count(*) filter (where usd_per_hour is null) as runs_without_rate
from run_ends;

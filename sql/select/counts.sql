-- How many rows of marked_rows there are, have a score and are kept; and worth, the score (or length) of the last row
-- that is kept, how many rows share it (tied) and how many of those are kept (taken). Parameters: none.
with cut as (
    select min(worth) as worth from marked_rows where why is null
)
select
    count(*) as pool,
    count(m.score) as scored,
    count(*) filter (where m.why is null) as kept,
    any_value(c.worth) as worth,
    count(*) filter (where m.worth = c.worth and (m.why is null or m.why = 'not_drawn')) as tied,
    count(*) filter (where m.worth = c.worth and m.why is null) as taken
from marked_rows m, cut c;

-- How many rows of marked_rows are not kept, by reason, most first. Parameters: kind.
select
    case
        when why <> 'not_drawn' or $kind = 'random' then why
        when worth = (select min(worth) from marked_rows where why is null) then 'tied_at_cut'
        else 'below_cut'
    end as reason,
    count(*) as rows
from marked_rows
where why is not null
group by 1
order by 2 desc, 1;

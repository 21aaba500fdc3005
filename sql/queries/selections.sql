-- The selections, oldest first. Parameters: none.
select label as selection, dataset, rows, pool, kept_share, condition, created_at
from selection_list
order by created_at, selection;

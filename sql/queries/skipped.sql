-- The unusable rows of files, by dataset and reason, most frequent first; the rows are in the view
-- skipped_rows. Parameters: dataset (null for all).
select dataset, reason, count(*) as rows, min(position) as first_position
from skipped_rows
where $dataset is null or dataset = $dataset
group by all
order by dataset, rows desc, reason;

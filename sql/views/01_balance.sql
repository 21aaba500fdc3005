-- One row: the API dollars of this database. free_usd and budget_usd are null while no budget is set.
create or replace view balance as
with sums as (
    select
        coalesce(sum(spent_usd), 0)::decimal(38, 15) as spent_usd,
        coalesce(sum(reserved_usd), 0)::decimal(38, 15) as reserved_usd,
        coalesce(sum(unresolved_usd), 0)::decimal(38, 15) as unresolved_usd
    from ledger
),
cap as (
    select arg_max(budget_usd, entry_id) as budget_usd from budgets
)
select
    cap.budget_usd,
    sums.spent_usd,
    sums.reserved_usd,
    sums.unresolved_usd,
    (cap.budget_usd - sums.spent_usd - sums.reserved_usd - sums.unresolved_usd)::decimal(38, 15) as free_usd
from sums, cap;

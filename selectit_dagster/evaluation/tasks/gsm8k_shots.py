"""Eight worked examples of school mathematics, written for this project."""

SHOTS: tuple[tuple[str, str], ...] = (
    (
        "A baker has 23 rolls in the morning. She bakes 18 more and sells 29. How many "
        "rolls are left?",
        "The baker starts with 23 rolls and bakes 18 more, so she has 23 + 18 = 41 rolls."
        " She sells 29, so 41 - 29 = 12 rolls are left. The answer is 12.",
    ),
    (
        "Omar fills 6 shelves with 14 books each. Then he gives 9 books to a friend. How "
        "many books does he have now?",
        "Six shelves with 14 books each hold 6 * 14 = 84 books. After giving away 9, Omar"
        " has 84 - 9 = 75 books. The answer is 75.",
    ),
    (
        "A train ticket costs 12 dollars and a bus ticket costs a third of that. What do "
        "2 train tickets and 3 bus tickets cost together?",
        "A bus ticket costs 12 / 3 = 4 dollars. Two train tickets cost 2 * 12 = 24 "
        "dollars and three bus tickets cost 3 * 4 = 12 dollars. Together that is 24 + 12 "
        "= 36 dollars. The answer is 36.",
    ),
    (
        "Ines runs 5 kilometres on each weekday and 8 kilometres on each day of the "
        "weekend. How far does she run in 2 weeks?",
        "In a week there are 5 weekdays, which make 5 * 5 = 25 kilometres, and 2 days of "
        "the weekend, which make 2 * 8 = 16 kilometres. A week is 25 + 16 = 41 "
        "kilometres, so 2 weeks are 2 * 41 = 82 kilometres. The answer is 82.",
    ),
    (
        "There are 90 seats in a hall. Two thirds of them are taken, and then 7 people "
        "leave. How many seats are free?",
        "Two thirds of 90 seats are 90 * 2 / 3 = 60 taken seats. After 7 people leave, 60"
        " - 7 = 53 seats are taken. So 90 - 53 = 37 seats are free. The answer is 37.",
    ),
    (
        "Priya is 4 years older than Leo. In 3 years Leo will be 15. How old is Priya now?",
        "Leo will be 15 in 3 years, so he is 15 - 3 = 12 now. Priya is 4 years older, so "
        "she is 12 + 4 = 16. The answer is 16.",
    ),
    (
        "A farmer packs 150 eggs into boxes of 12. How many eggs do not fill a whole box?",
        "Twelve boxes hold 12 * 12 = 144 eggs, and a thirteenth box would need 156. So "
        "150 - 144 = 6 eggs do not fill a box. The answer is 6.",
    ),
    (
        "A coat costs 80 dollars. Its price falls by a quarter, and a buyer pays with a "
        "100 dollar note. How much money comes back?",
        "A quarter of 80 dollars is 80 / 4 = 20 dollars, so the coat costs 80 - 20 = 60 "
        "dollars now. From 100 dollars, 100 - 60 = 40 dollars come back. The answer is "
        "40.",
    ),
)

"""The few facts that the miniature world knows.

Every table is small enough for a model of half a million parameters to learn by heart, and true,
so that a reader can tell a right answer from a wrong one without a key.
"""

from typing import Final

CAPITALS: Final[dict[str, str]] = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Kenya": "Nairobi", "Cuba": "Havana",
    "Norway": "Oslo", "Greece": "Athens", "Poland": "Warsaw", "Austria": "Vienna",
    "Ireland": "Dublin", "Russia": "Moscow", "Germany": "Berlin", "Portugal": "Lisbon",
    "England": "London", "Chile": "Santiago", "Canada": "Ottawa", "Iran": "Tehran",
    "Iraq": "Baghdad", "India": "Delhi", "Finland": "Helsinki", "Hungary": "Budapest",
    "Belgium": "Brussels",
}  # fmt: skip

COLOURS: Final[dict[str, str]] = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue",
    "a lemon": "yellow", "a carrot": "orange", "milk": "white", "a cherry": "red",
    "a frog": "green", "chocolate": "brown", "the sea": "blue", "a banana": "yellow",
    "a crow": "black", "a pumpkin": "orange", "a leaf": "green", "salt": "white",
    "a tomato": "red", "a bear": "brown", "butter": "yellow", "ink": "black", "wood": "brown",
    "ash": "grey", "an elephant": "grey", "a plum": "purple", "a grape": "purple",
}  # fmt: skip

YOUNG: Final[dict[str, str]] = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb",
    "hen": "chick", "duck": "duckling", "goose": "gosling", "pig": "piglet", "lion": "cub",
    "goat": "kid", "deer": "fawn", "frog": "tadpole", "owl": "owlet", "swan": "cygnet",
    "eagle": "eaglet", "kangaroo": "joey", "seal": "pup", "hare": "leveret", "fish": "fry",
}  # fmt: skip

OPPOSITES: Final[tuple[tuple[str, str], ...]] = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("old", "young"),
    ("fast", "slow"), ("wet", "dry"), ("rich", "poor"), ("open", "closed"), ("light", "dark"),
    ("hard", "soft"), ("early", "late"), ("full", "empty"), ("near", "far"), ("high", "low"),
    ("long", "short"), ("thick", "thin"), ("loud", "quiet"), ("happy", "sad"),
    ("clean", "dirty"),
)  # fmt: skip

CATEGORIES: Final[dict[str, tuple[str, ...]]] = {
    "animal": ("horse", "tiger", "mouse", "rabbit", "snake", "wolf", "whale", "camel"),
    "plant": ("rose", "oak", "fern", "tulip", "daisy", "pine", "moss", "ivy"),
    "tool": ("hammer", "saw", "drill", "spade", "axe", "wrench", "rake", "chisel"),
    "food": ("bread", "cheese", "soup", "rice", "cake", "honey", "pasta", "toast"),
}

PAST: Final[dict[str, str]] = {
    "go": "went", "see": "saw", "eat": "ate", "run": "ran", "take": "took", "give": "gave",
    "come": "came", "write": "wrote", "sing": "sang", "drink": "drank", "find": "found",
    "buy": "bought", "think": "thought", "sleep": "slept", "break": "broke", "speak": "spoke",
    "fly": "flew", "draw": "drew", "swim": "swam", "win": "won", "lose": "lost",
    "teach": "taught", "keep": "kept", "begin": "began", "know": "knew", "throw": "threw",
}  # fmt: skip

DAYS: Final[tuple[str, ...]] = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip

MONTHS: Final[tuple[str, ...]] = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip

LIST_WORDS: Final[tuple[str, ...]] = (
    "cup", "hat", "pen", "box", "key", "bag", "map", "bell", "lamp", "shoe", "coin", "rope",
    "door", "sock", "book", "leaf",
)  # fmt: skip

NAMES: Final[tuple[str, ...]] = ("Anna", "Ben", "Carl", "Dora", "Emma", "Finn", "Greta", "Hugo")
PETS: Final[tuple[str, ...]] = ("dog", "cat", "hen", "goat", "pig", "duck")
JOBS: Final[tuple[str, ...]] = ("baker", "nurse", "pilot", "farmer", "singer", "judge")

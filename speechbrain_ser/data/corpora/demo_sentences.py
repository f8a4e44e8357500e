"""What the demo corpus's English speakers say: plain sentences, enough of them to learn letters rather than texts."""

import re


def _sentences(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w[^.?]*[.?]", text.replace("\n", " ")))


SENTENCES = _sentences("""
The boat left before sunrise. Bring me a glass of water. She will call you tomorrow. We walked home in the rain. The
window is open again. They moved to a new house. My brother found the keys. I put the letter on the table. Nobody
knows what happened. Dinner is almost ready. He never asked for the money. You should have told me. The train stops
here every morning. Please close the kitchen door. Our teacher lost her glasses. It snowed all night long. There is a
bird on the roof. Who left the light on? We need more bread and cheese. The children are playing outside. His shoes
were wet and dirty. Can you help me with this box? My sister works in a hospital. The coffee is too hot. They waited
an hour for the bus. I forgot my umbrella at work. The dog sleeps under the bed. She bought a green jacket. Somebody
is knocking at the door. He drives slowly through the village. We should leave before noon. The baby smiled at
everyone. What time does the shop open? I have never been to London. Her father grows red apples. The river is high
this year. You can keep the change. My phone needs a new battery. They painted the wall yellow. Where did you put the
scissors? The soup needs a little salt. He wrote a long letter home. I will meet you at the station. The market was
full of people. She plays the piano very well. Our neighbor has three cats. Turn left after the bridge. The movie was
over by nine. We saw a fox in the garden. His answer surprised all of us. Take the blue bag with you. The clock on the
wall is wrong. Nobody wanted the last piece of cake. I cannot find my other glove. They sing together every Sunday.
The road goes around the lake. Would you like some tea? My knee hurts when I run. The farmer sold his old horse. She
opened the box with a knife. It is colder than yesterday. We are going to the beach. He broke the cup by accident. The
paper is in the drawer. How much does the ticket cost? Her voice was quiet and warm. The plane arrived two hours late.
I gave him the wrong number. They built a bridge of wood. Please write your name here. The apples fell from the tree.
You look tired this morning. My uncle lives near the sea. The stairs are behind the kitchen. We had fish for dinner.
She reads the news every day. The boy jumped over the fence. Do not touch the hot stove. He counted the money twice.
Summer was short and very dry. I heard a noise in the cellar. The doctor will see you now. They were late for school
again. Her dress has a small hole. The key does not fit. We danced until the music stopped. My mother sent us a
picture. Is there any milk in the fridge? The wind took my hat away. He speaks with a soft voice. I would rather stay
at home. The garden is full of roses. She paid for all the tickets. Our car would not start today. The cat hid behind
the chair. You forgot to lock the car. They met in a small cafe. The lamp fell off the shelf. I washed the shirt this
morning. He is looking for a quiet room. The moon was bright last night. We cannot wait any longer. Her hands were
cold as ice. The bus driver knew the way. Put the plates on the shelf. My grandfather told us a story. The students
asked many questions. It takes ten minutes by bike. She cut the bread into slices. They grow potatoes behind the
house. The office is closed on Monday. I want to learn how to swim. He was born in a small town. The flowers need
water every evening. We lost the game by one point. Your coat is on the chair. The judge listened to both sides. She
dropped her ring in the river. Why are you laughing at me? The tea smells of lemon. They rode their bikes to school.
My room is on the third floor. The fire went out during the night. I think we took a wrong turn. He carried the chairs
outside. The bank is across the street. You must try the chocolate cake. Her brother fixed the broken clock. The snow
was deep and white. We found shells on the beach. The singer thanked her friends. I need a pen and some paper. They
live on a quiet street. The horse ran across the field. She never drinks coffee at night. His jacket is too big for
me. The pilot waved from the plane. Could you speak a little louder? We ate lunch under a tree. The mouse ran into the
wall. My friends gave me a watch. The weather will change on Friday. He forgot what he wanted to say. I saw your
sister at the market.
""")
# known words in new orders, said by held-out speakers only: what a model spells, not what it knows by heart
HELD_OUT = _sentences("""
You left the keys in the boat. My brother should call again tomorrow. The children found a bird in the garden. I will
wait for you at the bridge. She put the cake on the kitchen table. His father works near the lake. We never waited for
the train. The window behind the stairs is broken. They asked the doctor for help. Nobody told me the music was over.
Please bring your umbrella to school. Her old dog ran through the snow. The street is wet this morning. Do you want
some fish and bread? He lost the blue ticket yesterday. Our neighbor sold the white house.
""")
